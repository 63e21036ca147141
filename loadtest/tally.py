"""What a run has counted so far: in one process as requests end, on the master as workers report."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadtest.outages import Outages

WIDTH = math.log(1.01)
SMALLEST_MS = 0.001
SLOW_MS = 300.0  # the default of --slow-ms


class Latencies(Counter[int]):
    """How often which latency occurred, in buckets that are 1 % wide: small to send from a worker to its master.

    Locust rounds latencies above 100 ms to two digits, which is too coarse to compare with an objective.
    """

    def add(self, ms: float) -> None:
        """Counts one latency."""
        self[math.floor(math.log(max(ms, SMALLEST_MS)) / WIDTH)] += 1

    def percentile(self, share: float) -> float | None:
        """The latency in ms that `share` of all did not exceed, to within half a percent; None without any.

        It is the latency of one request (nearest rank): of fewer than 1,000, the 99.9th percentile is the highest.
        """
        wanted, seen = share * self.total(), 0
        for bucket in sorted(self):
            seen += self[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None

    def mean(self) -> float | None:
        """The mean in ms; None if nothing was counted."""
        if not self:
            return None
        return sum(_middle(bucket) * count for bucket, count in self.items()) / self.total()


def _middle(bucket: int) -> float:
    return math.exp((bucket + 0.5) * WIDTH)


class RequestOutcome(StrEnum):
    """How a request ended."""

    RIGHT = "right"
    MISMATCH = "mismatch"  # answered, but not as expected
    FOREIGN = "foreign"  # a mismatch that is the right answer to another text
    REFUSED = "refused"  # the server shed load (503)
    TIMEOUT = "timeout"  # no answer in time
    FAILED = "failed"  # any other error


@dataclass
class Counts:
    """Requests that ended within some period.

    Attributes:
        outcomes: number of requests by `RequestOutcome`.
        texts, tokens: of requests that were answered right.
        latencies: of all requests but those that were refused or failed within `SLOW_MS` or ``--slow-ms``: they would
            make the others look fast.
        slow: how many requests took longer than that, or got no answer.
        max_ms: the highest of the latencies, exactly.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    slow: int = 0
    max_ms: float = 0.0

    @property
    def requests(self) -> int:
        """All requests."""
        return self.outcomes.total()

    @property
    def mismatches(self) -> int:
        """Requests with a wrong answer."""
        return self.outcomes[RequestOutcome.MISMATCH] + self.outcomes[RequestOutcome.FOREIGN]

    @property
    def errors(self) -> int:
        """Requests without an answer, except those that the server refused."""
        return self.outcomes[RequestOutcome.TIMEOUT] + self.outcomes[RequestOutcome.FAILED]

    @property
    def refused(self) -> int:
        """Requests that the server refused because it had too many."""
        return self.outcomes[RequestOutcome.REFUSED]

    def add(self, outcome: RequestOutcome, texts: int, tokens: int, latency_ms: float, slow_ms: float) -> None:
        """Counts one request."""
        answered = outcome in (RequestOutcome.RIGHT, RequestOutcome.MISMATCH, RequestOutcome.FOREIGN)
        self.outcomes[outcome] += 1
        if outcome is RequestOutcome.RIGHT:
            self.texts += texts
            self.tokens += tokens
        self.slow += not answered or latency_ms > slow_ms
        if answered or outcome is RequestOutcome.TIMEOUT or latency_ms > slow_ms:
            self.latencies.add(latency_ms)
            self.max_ms = max(self.max_ms, latency_ms)

    def percentile(self, share: float) -> float | None:
        """As `Latencies.percentile`, but never above the maximum."""
        found = self.latencies.percentile(share)
        return None if found is None else min(found, self.max_ms)

    def merge(self, other: Counts) -> None:
        """Adds the counts of another one."""
        self.outcomes.update(other.outcomes)
        self.texts += other.texts
        self.tokens += other.tokens
        self.latencies.update(other.latencies)
        self.slow += other.slow
        self.max_ms = max(self.max_ms, other.max_ms)


@dataclass
class Tally:
    """Counts by the second in which requests ended, so that phases and workers can be added up.

    Attributes:
        seconds: counts by whole second of the clock (``time.time``); the clocks of workers should agree.
        lateness: open arrivals only: how late the load generator itself started requests.
        began, ended: clock times at which the first request was due and the last one ended; infinite before.
        slow_ms: requests that take longer are slow.
        outages: when no server answered.
    """

    seconds: dict[int, Counts] = field(default_factory=dict)
    lateness: Latencies = field(default_factory=Latencies)
    began: float = math.inf
    ended: float = -math.inf
    slow_ms: float = SLOW_MS
    outages: Outages = field(default_factory=Outages)

    def add(self, outcome: RequestOutcome, texts: int, tokens: int, latency_ms: float, ended: float) -> None:
        """Counts one request that ended at clock time `ended`."""
        self.seconds.setdefault(int(ended), Counts()).add(outcome, texts, tokens, latency_ms, self.slow_ms)
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
        return self.between(-math.inf, math.inf)

    def merge(self, other: Tally) -> None:
        """Adds another tally's counts."""
        for second, counts in other.seconds.items():
            self.seconds.setdefault(second, Counts()).merge(counts)
        self.lateness.update(other.lateness)
        self.outages.merge(other.outages.spans)
        self._widen(other.began, other.ended)

    def drain(self) -> dict[str, Any]:
        """Returns all counts as plain values for a message and empties the tally: no request is reported twice."""
        data = {
            "seconds": {
                second: [
                    counts.outcomes,
                    counts.texts,
                    counts.tokens,
                    counts.latencies,
                    counts.slow,
                    counts.max_ms,
                ]
                for second, counts in self.seconds.items()
            },
            "lateness": self.lateness,
            "began": self.began,
            "ended": self.ended,
            "outages": self.outages.drain(time.time()),
        }
        self.seconds, self.lateness = {}, Latencies()
        return data

    @classmethod
    def from_message(cls, data: Mapping[str, Any]) -> Tally:
        """The inverse of `drain`."""
        seconds = {
            second: Counts(Counter(outcomes), texts, tokens, Latencies(buckets), slow, max_ms)
            for second, (outcomes, texts, tokens, buckets, slow, max_ms) in data["seconds"].items()
        }
        outages = Outages()
        outages.merge(data["outages"])
        return cls(seconds, Latencies(data["lateness"]), data["began"], data["ended"], outages=outages)

    def _widen(self, began: float, ended: float) -> None:
        self.began, self.ended = min(self.began, began), max(self.ended, ended)
