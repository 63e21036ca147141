"""How a request gets its answer: choose a replica, ask it, and after some failures ask another one or the same again.

`RetryLoop` is a generator. It yields `Send` and `Pause`, and receives the reply or the error. `Client` carries these
out by blocking and `AsyncClient` by awaiting, so the rules exist once and are tested without a network.

The retry budget is a token bucket, as in gRPC and Finagle: each call adds a fraction of a token, and each retry takes a
whole token. A server that sheds load therefore gets at most that fraction more requests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from polyhead_client.errors import (
    BadResponseError,
    PolyheadClientError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
    may_have_crashed_server,
)
from polyhead_client.replicas import Replica, Replicas, brief_lock
from polyhead_client.request import Call, Deadline

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to ask again, and how often.

    Attributes:
        max_attempts: most requests for one batch of texts, including the first; 1 means no retry.
        base_s: upper limit of the first pause. The limit doubles with each retry (full jitter: a pause is random
            between 0 and its limit).
        cap_s: highest limit of a pause. Only the server's ``Retry-After`` may make a pause longer.
        budget: retries per call, averaged over all calls of the client.
        burst: retries that the client may make before it has saved any budget, and most that it can save.
    """

    max_attempts: int = 4
    base_s: float = 0.1
    cap_s: float = 2.0
    budget: float = 0.1
    burst: int = 10

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.max_attempts, self.burst))
        if not whole or self.max_attempts < 1 or self.burst < 0:
            raise UsageError(f"retry: max_attempts must be a whole number of at least 1, burst of at least 0: {self}")
        numbers = (self.base_s, self.cap_s, self.budget)
        if not all(isinstance(value, int | float) and value >= 0 and math.isfinite(value) for value in numbers):
            raise UsageError(f"retry: base_s, cap_s and budget must be finite and not negative: {self}")


class RetryBudget:
    """The token bucket of one client; safe for threads."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self._tokens = float(policy.burst)
        self._lock = brief_lock()

    def deposit(self) -> None:
        """Adds the share of one call."""
        with self._lock:
            self._tokens = min(self._tokens + self.policy.budget, float(self.policy.burst))

    def withdraw(self) -> bool:
        """Takes one retry out; False if there is none."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


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


Steps = Generator[Send | Pause, Any, T]


class RetryLoop:
    """The replicas and the retry budget of one client; safe for threads, because each generator has one caller."""

    def __init__(self, replicas: Replicas, policy: RetryPolicy) -> None:
        self.replicas = replicas
        self._policy = policy
        self._budget = RetryBudget(policy)

    def ask(self, call: Call, deadline: Deadline, read: Callable[[Any], T]) -> Steps[T]:
        """Asks until a replica answers, within policy, budget and deadline. `read` turns the reply into a value."""
        self._budget.deposit()
        tried: set[str] = set()
        attempt, retries, sent_again = 0, 0, False
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
            if not _may_retry(failure) or deadline.cancelled:
                raise failure
            if may_have_crashed_server(failure):
                # The request may have been computed, or may have crashed the server. One retry is enough.
                if sent_again or self._policy.max_attempts == 1:
                    raise failure
                sent_again = True
            if not isinstance(failure, ServerOverloadedError) and self.replicas.has_other(tried):
                continue  # another replica costs the failed one nothing, so no pause and no budget
            retries += 1
            wait_s = pause_s(self._policy, retries, failure)
            if retries >= self._policy.max_attempts or wait_s >= deadline.remaining_s() or not self._budget.withdraw():
                raise failure
            yield Pause(wait_s)

    def ask_replica(self, replica: Replica, call: Call, deadline: Deadline, read: Callable[[Any], T]) -> Steps[T]:
        """Asks this replica, once."""
        self.replicas.enter(replica)
        return (yield from self._once(Send(replica, call, deadline), read))

    def _once(self, send: Send, read: Callable[[Any], T]) -> Steps[T]:
        # `take` or `enter` has counted the request; `give_back` must follow, also if the caller gives up.
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


def _may_retry(error: PolyheadClientError) -> bool:
    # Nothing was computed: the server shed load, or the server or its model process could not be reached.
    return isinstance(error, ServerOverloadedError | ServerUnreachableError) or may_have_crashed_server(error)


def pause_s(policy: RetryPolicy, retry: int, error: PolyheadClientError) -> float:
    """Seconds to wait before the retry with this number, counted from 1."""
    limit = min(policy.cap_s, policy.base_s * 2 ** (retry - 1))
    wanted = error.retry_after_s if isinstance(error, ServerOverloadedError) else None
    return max(random.uniform(0, limit), wanted or 0.0)
