"""How a request gets its answer: a replica is chosen, asked, and where nothing was computed another or the same again.

Everything is a generator of effects: it yields `Send` and `Pause`, and is sent replies or thrown errors. `Client`
performs them by blocking, `AsyncClient` by awaiting, so that the rules exist once and are tested without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from polyhead_client.deadline import Deadline
from polyhead_client.errors import (
    BadResponseError,
    PolyheadClientError,
    RequestTimeoutError,
    ServerOverloadedError,
)
from polyhead_client.replicas import Replica, Replicas
from polyhead_client.request import Call
from polyhead_client.retry import RetryBudget, RetryPolicy, is_fallen, is_repeatable, pause_s

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Asks a replica; `attempt` counts from 1."""

    replica: Replica
    call: Call
    deadline: Deadline
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits."""

    seconds: float


Talk = Generator[Send | Pause, Any, T]


class Conversation:
    """One client's replicas and retry budget; safe from threads, each generator being one caller's."""

    def __init__(self, replicas: Replicas, retry: RetryPolicy) -> None:
        self.replicas = replicas
        self._retry = retry
        self._budget = RetryBudget(retry)

    def ask(self, call: Call, deadline: Deadline, read: Callable[[Any], T]) -> Talk[T]:
        """Asks until a replica answers, as far as policy, budget and deadline go; `read` makes a value of the reply."""
        self._budget.deposit()
        tried: set[str] = set()
        attempt, repeats, sent_again = 0, 0, False
        while True:
            attempt += 1
            if deadline.remaining_s() <= 0:
                message = f"{call.model} did not answer within {deadline.timeout_s:g} s; allow more time"
                raise RequestTimeoutError(message, model=call.model)
            replica = self.replicas.take(tried)
            try:
                return (yield from self._once(Send(replica, call, deadline, attempt), read))
            except PolyheadClientError as error:
                failure = error
            tried.add(replica.address)
            if not is_repeatable(failure) or deadline.cancelled:
                raise failure
            if is_fallen(failure):
                # It may have been computed, or have killed the server: once more is enough.
                if sent_again or self._retry.max_attempts == 1:
                    raise failure
                sent_again = True
            if not isinstance(failure, ServerOverloadedError) and self.replicas.has_other(tried):
                continue  # costs no server anything, and waiting would help nobody
            repeats += 1
            wait_s = pause_s(self._retry, repeats, failure)
            if repeats >= self._retry.max_attempts or wait_s >= deadline.remaining_s() or not self._budget.withdraw():
                raise failure
            yield Pause(wait_s)

    def ask_replica(self, replica: Replica, call: Call, deadline: Deadline, read: Callable[[Any], T]) -> Talk[T]:
        """Asks this one, once."""
        self.replicas.enter(replica)
        return (yield from self._once(Send(replica, call, deadline), read))

    def _once(self, send: Send, read: Callable[[Any], T]) -> Talk[T]:
        # The replica was counted as asked; it is given back in any case, also where the caller gives up.
        error: PolyheadClientError | None = None
        answered = False
        try:
            reply = yield send
            try:
                value = read(reply)
            except BadResponseError as bad:
                address = send.replica.address
                raise BadResponseError(f"{address}: {bad}", model=send.call.model, replica=address) from bad
            answered = True
            return value
        except PolyheadClientError as failed:
            error = failed
            raise
        finally:
            self.replicas.give_back(send.replica, error, answered)
