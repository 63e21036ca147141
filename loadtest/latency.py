"""Latencies as counts in buckets a hundredth wide: small to send from a worker, exact enough for an objective.

Locust's own counts are rounded to two digits above 100 ms, which is too coarse to hold against `p95_ms`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

WIDTH = math.log(1.01)
SMALLEST_MS = 0.001


class Latencies:
    """How often which latency occurred, to within half a hundredth."""

    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self.buckets = Counter({int(bucket): count for bucket, count in (buckets or {}).items()})

    def __len__(self) -> int:
        return self.buckets.total()

    def add(self, ms: float) -> None:
        """One more."""
        self.buckets[math.floor(math.log(max(ms, SMALLEST_MS)) / WIDTH)] += 1

    def merge(self, other: Latencies) -> None:
        """All of another's."""
        self.buckets.update(other.buckets)

    def percentile(self, share: float) -> float | None:
        """The latency in ms that `share` of all did not exceed; None without any."""
        wanted, seen = share * len(self), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None

    def mean(self) -> float | None:
        """Their mean in ms; None without any."""
        if not self.buckets:
            return None
        return sum(_middle(bucket) * count for bucket, count in self.buckets.items()) / len(self)


def _middle(bucket: int) -> float:
    return math.exp((bucket + 0.5) * WIDTH)
