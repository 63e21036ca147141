"""What a run has counted so far: in one process as requests end, on the master as workers report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from loadtest.latency import Latencies


class Outcome(Enum):
    """How a request ended."""

    RIGHT = "right"
    MISMATCH = "mismatch"  # answered, but not as expected
    FOREIGN = "foreign"  # a mismatch that is the answer to another text
    REFUSED = "refused"  # an error that nobody had to wait for
    TIMEOUT = "timeout"  # an error after waiting


# An error that comes at once would make the rest look fast; one that took all the patience there is must count.
WAITED = frozenset({Outcome.RIGHT, Outcome.MISMATCH, Outcome.FOREIGN, Outcome.TIMEOUT})


@dataclass
class Counts:
    """Requests that ended within some time.

    Attributes:
        outcomes: requests by the name of their `Outcome`.
        texts, tokens: of requests that were answered rightly.
        latencies: of requests that somebody waited for.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    texts: int = 0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    @property
    def requests(self) -> int:
        """All."""
        return sum(self.outcomes.values())

    @property
    def mismatches(self) -> int:
        """Answered wrongly."""
        return self.outcomes.get("mismatch", 0) + self.outcomes.get("foreign", 0)

    @property
    def errors(self) -> int:
        """Not answered."""
        return self.outcomes.get("refused", 0) + self.outcomes.get("timeout", 0)

    def add(self, outcome: Outcome, texts: int, tokens: int, latency_ms: float) -> None:
        """One request's end."""
        self.outcomes[outcome.value] = self.outcomes.get(outcome.value, 0) + 1
        if outcome is Outcome.RIGHT:
            self.texts += texts
            self.tokens += tokens
        if outcome in WAITED:
            self.latencies.add(latency_ms)

    def merge(self, other: Counts) -> None:
        """All of another's."""
        for name, count in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, 0) + count
        self.texts += other.texts
        self.tokens += other.tokens
        self.latencies.merge(other.latencies)


@dataclass
class Tally:
    """Counts by the second in which requests ended, which phases and workers can be put together from.

    Attributes:
        seconds: by whole seconds of the clock (``time.time``); workers' clocks should agree.
        lateness: open arrivals only, how much later than due a request was started: the load generator's own delay.
        began, ended: clock times at which the first request was due and the last ended; None before.
    """

    seconds: dict[int, Counts] = field(default_factory=dict)
    lateness: Latencies = field(default_factory=Latencies)
    began: float | None = None
    ended: float | None = None

    def add(self, outcome: Outcome, texts: int, tokens: int, latency_ms: float, ended: float) -> None:
        """One request's end, at clock time `ended`."""
        self.seconds.setdefault(int(ended), Counts()).add(outcome, texts, tokens, latency_ms)
        self._widen(ended - latency_ms / 1000, ended)

    def between(self, start: float, end: float) -> Counts:
        """The counts of the whole seconds from `start` on and before `end`."""
        found = Counts()
        for second, counts in self.seconds.items():
            if start <= second < end:
                found.merge(counts)
        return found

    def total(self) -> Counts:
        """The counts of all seconds."""
        return self.between(float("-inf"), float("inf"))

    def merge(self, other: Tally) -> None:
        """All of another's."""
        for second, counts in other.seconds.items():
            self.seconds.setdefault(second, Counts()).merge(counts)
        self.lateness.merge(other.lateness)
        if other.began is not None and other.ended is not None:
            self._widen(other.began, other.ended)

    def drain(self) -> dict[str, Any]:
        """Everything as plain values for a message, and nothing left here: no request is reported twice."""
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
