"""How a request gets its answer: choose a replica, ask it, and after some failures ask another one or the same again.

`RetryLoop` is a generator. It yields `Send` and `Pause`, and receives the reply or the error. `Client` carries these
out by blocking and `AsyncClient` by awaiting, so the rules exist once and are tested without a network.

A call goes on until its deadline. A request that a server did not compute (no connection, shed load) is simply sent
again. A request that got no answer may have ended its server, so it is repeated once at most, and only to a replica
that has answered the canary text after that.

The retry budget is a token bucket, as in gRPC and Finagle: each call adds a fraction of a token, and each retry of a
request that was shed takes a whole token. If the bucket is empty, retries wait longer.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from numbers import Integral
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
from polyhead_client.request import Call, Deadline, is_number

PROBE_S = 5.0  # the most time that a canary text gets
LEAST_PAUSE_S = 0.05  # a call whose deadline is nearer than that does not try again

NOTE_AFTER_S = 2.0  # a call that has tried for so long says in the log that it goes on
NOTE_EVERY_S = 10.0

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to ask again, and how often.

    Attributes:
        max_attempts: most requests for one batch of texts, including the first; 1 means no retry. If it is None, only
            the deadline ends the retries. A replica that refuses the connection does not count if there is another.
        base_s: upper limit of the first pause. The limit doubles with each retry (full jitter: a pause is random
            between 0 and its limit).
        cap_s: highest limit of a pause. Only a server that names its time may make a pause longer: with
            ``retry in 2.4 s`` at the end of its message, or with ``Retry-After``.
        budget: retries of shed requests per call, averaged over all calls of the client. Retries beyond it wait for at
            least half of cap_s.
        burst: such retries that the client may make before it has saved any budget, and most that it can save.
    """

    max_attempts: int | None = None
    base_s: float = 0.1
    cap_s: float = 2.0
    budget: float = 0.1
    burst: int = 10

    def __post_init__(self) -> None:
        attempts = 1 if self.max_attempts is None else self.max_attempts
        whole = all(isinstance(value, Integral) and not isinstance(value, bool) for value in (attempts, self.burst))
        if not whole or attempts < 1 or self.burst < 0:
            raise UsageError(f"retry: max_attempts must be a whole number of at least 1, burst of at least 0: {self}")
        numbers = (self.base_s, self.cap_s, self.budget)
        if not all(is_number(value) and value >= 0 and math.isfinite(value) for value in numbers):
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
    """Asks a replica; `attempt` counts from 1. The deadline is that of this request, a part of the call's."""

    replica: Replica
    call: Call
    deadline: Deadline
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits, but not longer than until its deadline is cancelled."""

    seconds: float
    deadline: Deadline | None = None


Steps = Generator[Send | Pause, Any, T]


class RetryLoop:
    """The replicas and the retry budget of one client; safe for threads, because each generator has one caller."""

    def __init__(self, replicas: Replicas, policy: RetryPolicy) -> None:
        self.replicas = replicas
        self._policy = policy
        self._budget = RetryBudget(policy)
        self._next_note = 0.0

    def ask(self, call: Call, canary: Call, deadline: Deadline, read: Callable[[Any], T]) -> Steps[T]:
        """Asks until a replica answers or the deadline ends.

        Args:
            call: the request.
            canary: a harmless request. It shows that a replica computes, before `call` is repeated there.
            deadline: the call's.
            read: turns the reply into a value.
        """
        self._budget.deposit()
        tried: set[str] = set()
        attempt, retries = 0, 0
        unanswered: PolyheadClientError | None = None  # the error of the request that got no answer
        failure: PolyheadClientError | None = None  # the latest error
        while True:
            if deadline.remaining_s() <= 0:
                message = f"{call.model} did not answer within {deadline.timeout_s:g} s; allow more time"
                raise unanswered or failure or RequestTimeoutError(message, model=call.model)
            replica = self.replicas.take(tried)
            tried.add(replica.address)
            sent = False
            try:
                if unanswered is not None:
                    yield from self._once(Send(replica, canary, deadline.part(PROBE_S)), lambda reply: None)
                    self.replicas.enter(replica)
                attempt, sent = attempt + 1, True
                share = self._share(deadline, tried, unanswered is not None)
                return (yield from self._once(Send(replica, call, share, attempt), read))
            except UsageError:
                raise
            except PolyheadClientError as error:
                failure = error
            if deadline.cancelled:
                raise failure
            if sent:
                if not _may_retry(failure, deadline):
                    raise failure
                if may_have_crashed_server(failure):
                    if unanswered is not None or self._policy.max_attempts == 1:
                        raise failure
                    unanswered = failure
            if self.replicas.has_other(tried) and not isinstance(failure, ServerOverloadedError):
                continue  # another replica costs the failed one nothing, so no pause
            retries += 1
            wait_s = self._wait_s(retries, failure, tried, deadline)
            if wait_s is None or retries == self._policy.max_attempts:
                raise unanswered or failure
            self._note(failure, deadline)
            yield Pause(wait_s, deadline)

    def _note(self, failure: PolyheadClientError, deadline: Deadline) -> None:
        """Says that a call goes on trying, because a wrong address looks like a server that restarts."""
        remaining_s, now = deadline.remaining_s(), time.monotonic()
        if deadline.timeout_s - remaining_s >= NOTE_AFTER_S and now >= self._next_note:
            self._next_note = now + NOTE_EVERY_S
            logger.warning("%s; trying for %.0f s more", failure, remaining_s)

    def _share(self, deadline: Deadline, tried: set[str], repeated: bool) -> Deadline:
        # If a replica hangs, another one must still have time to answer.
        if repeated or not self.replicas.has_other(tried):
            return deadline.part()
        return deadline.part(deadline.remaining_s() / 2)

    def _wait_s(self, retry: int, failure: PolyheadClientError, tried: set[str], deadline: Deadline) -> float | None:
        """Seconds until the next request; None if there is no time for one."""
        remaining_s = deadline.remaining_s()
        wait_s = pause_s(self._policy, retry)
        if isinstance(failure, ServerOverloadedError):
            if not self._budget.withdraw():
                wait_s = max(wait_s, self._policy.cap_s * random.uniform(0.5, 1))
            if not self.replicas.has_other(tried):
                named_s = failure.retry_after_s or 0.0
                if named_s >= remaining_s:
                    return None
                # A random part on top, so that the callers of a busy server do not come back together.
                wait_s = min(max(wait_s, named_s * random.uniform(1, 1.25)), max(remaining_s / 2, named_s))
        if not self.replicas.has_other(tried):
            tried.clear()
        if remaining_s < LEAST_PAUSE_S:
            return None
        return wait_s if wait_s < remaining_s else remaining_s / 2

    def ask_replica(self, replica: Replica, call: Call, deadline: Deadline, read: Callable[[Any], T]) -> Steps[T]:
        """Asks this replica, once."""
        self.replicas.enter(replica)
        return (yield from self._once(Send(replica, call, deadline), read))

    def _once(self, send: Send, read: Callable[[Any], T]) -> Steps[T]:
        # `take` or `enter` has counted the request; `give_back` must follow, also if the caller gives up.
        error: PolyheadClientError | None = None
        answered = False
        send.deadline.begin()
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


def _may_retry(error: PolyheadClientError, deadline: Deadline) -> bool:
    # Nothing was computed, because the server shed load or was not reached; or there was no answer, but there is time.
    if isinstance(error, ServerUnreachableError):
        return not error.permanent
    if isinstance(error, RequestTimeoutError):
        return deadline.remaining_s() > LEAST_PAUSE_S
    return isinstance(error, ServerOverloadedError) or may_have_crashed_server(error)


def pause_s(policy: RetryPolicy, retry: int) -> float:
    """Seconds to wait before the retry with this number, counted from 1; random below a limit that doubles."""
    return random.uniform(0, min(policy.cap_s, policy.base_s * 2 ** min(retry - 1, 30)))
