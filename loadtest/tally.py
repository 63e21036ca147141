"""What a run has counted so far: in one process as requests end, on the master as workers report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

WIDTH = math.log(1.01)
SMALLEST_MS = 0.001
AT_ONCE_MS = 100.0  # who waited longer for an error felt it, so its latency counts


class Latencies(Counter[int]):
    """How often which latency occurred, in buckets that are 1 % wide: small to send from a worker to its master.

    Locust rounds latencies above 100 ms to two digits, which is too coarse to compare with an objective.
    """

    def add(self, ms: float) -> None:
        """Counts one latency."""
        self[math.floor(math.log(max(ms, SMALLEST_MS)) / WIDTH)] += 1

    def percentile(self, share: float) -> float | None:
        """The latency in ms that `share` of all did not exceed; None if nothing was counted."""
        wanted, seen = share * self.total(), 0
        for bucket in sorted(self):
            seen += self[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None

    def share_over(self, ms: float) -> float | None:
        """The share of latencies above `ms`, to within the width of a bucket; None if nothing was counted."""
        if not self:
            return None
        return sum(count for bucket, count in self.items() if _middle(bucket) > ms) / self.total()

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
    REFUSED = "refused"  # an error that the server sent
    NO_SERVER = "no_server"  # nobody listened
    TIMEOUT = "timeout"  # an error after waiting


WITHOUT_ANSWER = (RequestOutcome.REFUSED, RequestOutcome.TIMEOUT, RequestOutcome.NO_SERVER)


@dataclass
class Counts:
    """Requests that ended within some period.

    Attributes:
        outcomes: number of requests by `RequestOutcome`.
        texts, tokens: of requests that were answered right.
        latencies: of all requests but those that failed at once, which would make the others look fast.
        max_ms: the longest of them; 0 if there are none.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)
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
        """Requests without an answer."""
        return sum(self.outcomes[one] for one in WITHOUT_ANSWER)

    @property
    def has_no_server(self) -> bool:
        """Whether requests found no server and none was answered."""
        return self.outcomes[RequestOutcome.NO_SERVER] > 0 and self.requests == self.errors

    def add(self, outcome: RequestOutcome, texts: int, tokens: int, latency_ms: float) -> None:
        """Counts one request."""
        self.outcomes[outcome] += 1
        if outcome is RequestOutcome.RIGHT:
            self.texts += texts
            self.tokens += tokens
        if outcome not in (RequestOutcome.REFUSED, RequestOutcome.NO_SERVER) or latency_ms > AT_ONCE_MS:
            self.latencies.add(latency_ms)
            self.max_ms = max(self.max_ms, latency_ms)

    def merge(self, other: Counts) -> None:
        """Adds the counts of another one."""
        self.outcomes.update(other.outcomes)
        self.texts += other.texts
        self.tokens += other.tokens
        self.latencies.update(other.latencies)
        self.max_ms = max(self.max_ms, other.max_ms)


@dataclass
class Tally:
    """Counts by the second in which requests ended, so that phases and workers can be added up.

    Attributes:
        seconds: counts by whole second of the clock (``time.time``); the clocks of workers should agree.
        lateness: open arrivals only: how late the load generator itself started requests.
        began, ended: clock times at which the first request was due and the last one ended; infinite before.
    """

    seconds: dict[int, Counts] = field(default_factory=dict)
    lateness: Latencies = field(default_factory=Latencies)
    began: float = math.inf
    ended: float = -math.inf

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
        return self.between(-math.inf, math.inf)

    def seconds_without_server(self) -> int:
        """Whole seconds from one in which requests found no server and none was answered, until one is answered.

        Users pause then, so there may be no request in some of these seconds.
        """
        found, last = 0, None
        for second, counts in sorted(self.seconds.items()):
            if counts.has_no_server:
                found += 1 if last is None else second - last
                last = second
            elif last is not None:
                found += second - last - 1
                last = None
        return found

    def merge(self, other: Tally) -> None:
        """Adds another tally's counts."""
        for second, counts in other.seconds.items():
            self.seconds.setdefault(second, Counts()).merge(counts)
        self.lateness.update(other.lateness)
        self._widen(other.began, other.ended)

    def drain(self) -> dict[str, Any]:
        """Returns all counts as plain values for a message and empties the tally: no request is reported twice."""
        data = {
            "seconds": {
                second: [counts.outcomes, counts.texts, counts.tokens, counts.latencies, counts.max_ms]
                for second, counts in self.seconds.items()
            },
            "lateness": self.lateness,
            "began": self.began,
            "ended": self.ended,
        }
        self.seconds, self.lateness = {}, Latencies()
        return data

    @classmethod
    def from_message(cls, data: Mapping[str, Any]) -> Tally:
        """The inverse of `drain`."""
        seconds = {
            second: Counts(Counter(outcomes), texts, tokens, Latencies(buckets), max_ms)
            for second, (outcomes, texts, tokens, buckets, max_ms) in data["seconds"].items()
        }
        return cls(seconds, Latencies(data["lateness"]), data["began"], data["ended"])

    def _widen(self, began: float, ended: float) -> None:
        self.began, self.ended = min(self.began, began), max(self.ended, ended)
