"""Whether a failed request is asked again, and when: jittered pauses inside the deadline, and a budget over all calls.

The budget is a token bucket as in gRPC and Finagle: each call puts in a fraction of a token, each repetition takes a
whole one. A server that sheds load therefore gets at most that fraction more, however many callers there are.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from polyhead_client.errors import (
    PolyheadClientError,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
)
from polyhead_client.locks import brief_lock


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How repetitions are paced.

    Attributes:
        max_attempts: requests for one batch of texts, the first included; 1 repeats nothing.
        base_s: the first pause is drawn from 0 to here; each later one from twice as much (full jitter).
        cap_s: what no pause exceeds, except where the server named a longer one (``Retry-After``).
        budget: repetitions a call, averaged over all calls of the client; the bucket starts with `burst` of them.
        burst: most repetitions that unspent budget adds up to.
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
    """The token bucket of one client; safe from threads."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self._tokens = float(policy.burst)
        self._lock = brief_lock()

    def deposit(self) -> None:
        """Counts a call."""
        with self._lock:
            self._tokens = min(self._tokens + self.policy.budget, float(self.policy.burst))

    def withdraw(self) -> bool:
        """Takes one repetition out, if there is one."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def is_repeatable(error: PolyheadClientError) -> bool:
    """Whether nothing was computed for the caller: load was shed, or connection or model process were out of reach."""
    return isinstance(error, ServerOverloadedError | ServerUnreachableError) or is_fallen(error)


def is_fallen(error: PolyheadClientError) -> bool:
    """Whether something fell that may have held the request, and so may have fallen because of it."""
    if isinstance(error, ServerUnreachableError):
        return error.request_sent
    return isinstance(error, ServerFailedError) and error.not_computed


def pause_s(policy: RetryPolicy, attempt: int, error: PolyheadClientError) -> float:
    """How long to wait after the failed attempt of this number, counted from 1."""
    ceiling = min(policy.cap_s, policy.base_s * 2 ** (attempt - 1))
    asked = error.retry_after_s if isinstance(error, ServerOverloadedError) else None
    return max(random.uniform(0, ceiling), asked or 0.0)
