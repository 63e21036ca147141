"""Latencies in buckets."""

from __future__ import annotations

import random

import pytest

from loadtest.latency import Latencies


def test_percentiles_are_exact_to_a_hundredth() -> None:
    """Percentiles and mean of many latencies, from microseconds to minutes, are within 1 % of the true ones."""
    draw = random.Random(1)
    true = sorted(10 ** draw.uniform(-2, 5) for _ in range(5000))
    found = Latencies()
    for ms in true:
        found.add(ms)
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        assert found.percentile(share) == pytest.approx(true[round(share * 5000) - 1], rel=0.01)
    assert found.mean() == pytest.approx(sum(true) / 5000, rel=0.01)


def test_merging_is_adding() -> None:
    """Two workers' latencies put together are those of one that saw all."""
    parts, whole = (Latencies(), Latencies()), Latencies()
    for place in range(1, 100):
        parts[place % 2].add(place)
        whole.add(place)
    parts[0].merge(Latencies(parts[1].buckets))
    assert parts[0].buckets == whole.buckets
    assert len(whole) == 99


def test_nothing_measured() -> None:
    """Without a latency there is no percentile and no mean; one that is not positive counts as the smallest."""
    found = Latencies()
    assert (found.percentile(0.5), found.mean(), len(found)) == (None, None, 0)
    found.add(0.0)
    assert found.percentile(0.99) == pytest.approx(0.001, rel=0.01)
