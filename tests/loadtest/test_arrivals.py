"""When open arrivals are due."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from loadtest.arrivals import PoissonArrivals


def test_gaps_are_exponential() -> None:
    """Arrivals come at the rate, and their gaps vary as a Poisson process's do: as much as they last."""
    arrivals = PoissonArrivals(50.0, 0.0, random.Random(3))
    due = arrivals.take(200.0)
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


def test_nobody_waits_for_anybody() -> None:
    """Who looks late gets all that became due meanwhile, with the times at which they were due, and each once."""
    prompt, late = (PoissonArrivals(20.0, 5.0, random.Random(4)) for _ in range(2))
    times = [one for second in range(5, 15) for one in prompt.take(second + 0.5)]
    assert late.take(14.5) == times
    assert late.take(14.5) == []
    assert late.due == prompt.due > 14.5
    assert all(5.0 < one <= 14.5 for one in times)
