"""When no server answered, and how long a user waits before it asks again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from polyhead_client import ModelNotFoundError, RetryPolicy, ServerFailedError, ServerUnreachableError
from polyhead_client.retry import pause_s

POLICY = RetryPolicy(base_s=0.1, cap_s=1.0)  # only its pauses


@dataclass
class Outages:
    """The times at which no server answered, by the clock.

    Attributes:
        spans: outages, from the first request that found no server to the next one that got an answer.
        since: when the present outage began; None if there is none.
    """

    spans: list[tuple[float, float]] = field(default_factory=list)
    since: float | None = None

    def lost(self, at: float) -> None:
        """A request found no server."""
        if self.since is None:
            self.since = at

    def answered(self, at: float) -> None:
        """A request was answered or refused."""
        if self.since is not None:
            self.spans.append((self.since, max(at, self.since)))
            self.since = None

    def drain(self, now: float) -> list[tuple[float, float]]:
        """Returns all spans up to now, for a message, and forgets them. An outage that goes on continues from now."""
        spans, goes_on = self.spans, self.since is not None
        if self.since is not None:
            spans = [*spans, (self.since, now)]
        self.spans, self.since = [], now if goes_on else None
        return spans

    def merge(self, spans: Iterable[Any]) -> None:
        """Adds the spans of a worker."""
        self.spans += [(begin, end) for begin, end in spans]

    def seconds(self, until: float) -> float:
        """Seconds of all outages up to `until`; those at which several workers found no server count once."""
        spans = [*self.spans, *([(self.since, until)] if self.since is not None else [])]
        return sum(end - begin for begin, end in _joined(sorted(spans)))


def _joined(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    reached = float("-inf")
    for begin, end in spans:
        if end > reached:
            yield max(begin, reached), end
            reached = end


def is_gone(error: Exception) -> bool:
    """Whether the error says that there is no server now, or that its model's process is dead or not loaded."""
    if isinstance(error, ServerFailedError):
        return error.not_computed
    return isinstance(error, ServerUnreachableError | ModelNotFoundError)


class BackOff:
    """The pauses of one user: after a failure twice as long at most as after the one before, up to a second.

    Attributes:
        until: the user sends nothing before this time of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._failures = 0

    def failed(self, now: float, told_s: float | None = None) -> None:
        """Begins a pause. Failures of requests that were sent before a pause do not make it longer.

        Args:
            now: the time.
            told_s: how long the server asked to wait. A random part is added, so that its callers come back one by one.
        """
        if now < self.until:
            return
        self._failures += 1
        wait_s = pause_s(POLICY, self._failures) if told_s is None else told_s * random.uniform(1, 1.25)
        self.until = now + wait_s

    def answered(self) -> None:
        """Ends the pause: the next one begins short."""
        self.until, self._failures = 0.0, 0
