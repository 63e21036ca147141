"""What a run has counted so far: in one process as requests end, on the master as workers report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

WIDTH = math.log(1.01)
SMALLEST_MS = 0.001


class Latencies:
    """How often which latency occurred, in buckets that are 1 % wide: small to send from a worker to its master.

    Locust rounds latencies above 100 ms to two digits, which is too coarse to compare with an objective.
    """

    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self.buckets = Counter({int(bucket): count for bucket, count in (buckets or {}).items()})

    def __len__(self) -> int:
        return self.buckets.total()

    def add(self, ms: float) -> None:
        """Counts one latency."""
        self.buckets[math.floor(math.log(max(ms, SMALLEST_MS)) / WIDTH)] += 1

    def merge(self, other: Latencies) -> None:
        """Adds the counts of another one."""
        self.buckets.update(other.buckets)

    def percentile(self, share: float) -> float | None:
        """The latency in ms that `share` of all did not exceed; None if nothing was counted."""
        wanted, seen = share * len(self), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None

    def mean(self) -> float | None:
        """The mean in ms; None if nothing was counted."""
        if not self.buckets:
            return None
        return sum(_middle(bucket) * count for bucket, count in self.buckets.items()) / len(self)


def _middle(bucket: int) -> float:
    return math.exp((bucket + 0.5) * WIDTH)


class RequestOutcome(Enum):
    """How a request ended."""

    RIGHT = "right"
    MISMATCH = "mismatch"  # answered, but not as expected
    FOREIGN = "foreign"  # a mismatch that is the right answer to another text
    REFUSED = "refused"  # an error that came at once
    TIMEOUT = "timeout"  # an error after waiting


# An error that comes at once would make the rest look fast, so it has no latency. A timeout has one: the caller waited.
WAITED = frozenset(
    {RequestOutcome.RIGHT, RequestOutcome.MISMATCH, RequestOutcome.FOREIGN, RequestOutcome.TIMEOUT}
)  # fmt: skip


@dataclass
class Counts:
    """Requests that ended within some period.

    Attributes:
        outcomes: number of requests by the value of their `RequestOutcome`.
        texts, tokens: of requests that were answered right.
        latencies: of requests in `WAITED`.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    texts: int = 0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    @property
    def requests(self) -> int:
        """All requests."""
        return sum(self.outcomes.values())

    @property
    def mismatches(self) -> int:
        """Requests with a wrong answer."""
        return self.outcomes.get("mismatch", 0) + self.outcomes.get("foreign", 0)

    @property
    def errors(self) -> int:
        """Requests without an answer."""
        return self.outcomes.get("refused", 0) + self.outcomes.get("timeout", 0)

    def add(self, outcome: RequestOutcome, texts: int, tokens: int, latency_ms: float) -> None:
        """Counts one request."""
        self.outcomes[outcome.value] = self.outcomes.get(outcome.value, 0) + 1
        if outcome is RequestOutcome.RIGHT:
            self.texts += texts
            self.tokens += tokens
        if outcome in WAITED:
            self.latencies.add(latency_ms)

    def merge(self, other: Counts) -> None:
        """Adds the counts of another one."""
        for name, count in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, 0) + count
        self.texts += other.texts
        self.tokens += other.tokens
        self.latencies.merge(other.latencies)


@dataclass
class Tally:
    """Counts by the second in which requests ended, so that phases and workers can be added up.

    Attributes:
        seconds: counts by whole second of the clock (``time.time``); the clocks of workers should agree.
        lateness: open arrivals only: how late the load generator itself started requests.
        began, ended: clock times at which the first request was due and the last one ended; None before.
    """

    seconds: dict[int, Counts] = field(default_factory=dict)
    lateness: Latencies = field(default_factory=Latencies)
    began: float | None = None
    ended: float | None = None

    def add(self, outcome: RequestOutcome, texts: int, tokens: int, latency_ms: float, ended: float) -> None:
        """Counts one request that ended at clock time `ended`."""
        self.seconds.setdefault(int(ended), Counts()).add(outcome, texts, tokens, latency_ms)
        self._widen(ended - latency_ms / 1000, ended)

    def between(self, start: float, end: float) -> Counts:
        """The counts of the whole seconds from `start` to before `end`."""
        found = Counts()
        for second, counts in self.seconds.items():
            if start <= second < end:
                found.merge(counts)
        return found

    def total(self) -> Counts:
        """The counts of all seconds."""
        return self.between(float("-inf"), float("inf"))

    def merge(self, other: Tally) -> None:
        """Adds another tally's counts."""
        for second, counts in other.seconds.items():
            self.seconds.setdefault(second, Counts()).merge(counts)
        self.lateness.merge(other.lateness)
        if other.began is not None and other.ended is not None:
            self._widen(other.began, other.ended)

    def drain(self) -> dict[str, Any]:
        """Returns all counts as plain values for a message and empties the tally: no request is reported twice."""
        data = {
            "seconds": {
                second: [counts.outcomes, counts.texts, counts.tokens, dict(counts.latencies.buckets)]
                for second, counts in self.seconds.items()
            },
            "lateness": dict(self.lateness.buckets),
            "began": self.began,
            "ended": self.ended,
        }
        self.seconds, self.lateness = {}, Latencies()
        return data

    @classmethod
    def from_message(cls, data: Mapping[str, Any]) -> Tally:
        """The inverse of `drain`."""
        seconds = {
            int(second): Counts(dict(outcomes), texts, tokens, Latencies(buckets))
            for second, (outcomes, texts, tokens, buckets) in data["seconds"].items()
        }
        return cls(seconds, Latencies(data["lateness"]), data["began"], data["ended"])

    def _widen(self, began: float, ended: float) -> None:
        self.began = began if self.began is None else min(self.began, began)
        self.ended = ended if self.ended is None else max(self.ended, ended)
