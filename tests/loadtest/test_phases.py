"""Shapes as phases, and open arrivals."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from types import SimpleNamespace

import pytest

from loadtest.phases import SHAPES, Phase, PoissonArrivals, find_saturation, phases_of
from loadtest.run import LoadRun
from loadtest.tally import RequestOutcome


def users_over_time(shape: str, users: int, duration_s: float, steps: int = 8) -> list[int]:
    """The number of users in each second."""
    phases = phases_of(shape, users, duration_s, steps)
    return [
        next(phase for phase in phases if second < phase.end_s).users_at(second) for second in range(int(duration_s))
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_phases_follow_each_other(shape: str) -> None:
    """Every shape begins at 0, has no gap, ends when it should, and has as many users as asked for at its highest."""
    phases = phases_of(shape, 20, 100.0, 8)
    assert phases[0].start_s == 0
    assert phases[-1].end_s == pytest.approx(100.0)
    assert all(earlier.end_s == pytest.approx(later.start_s) for earlier, later in pairwise(phases))
    assert max(phase.users_to for phase in phases) == 20
    assert all(1 <= users <= 20 for users in users_over_time(shape, 20, 100.0))


def test_each_shape_is_its_own() -> None:
    """Constant and open stay, a ramp climbs evenly, steps climb in steps, a spike comes and goes."""
    assert set(users_over_time("constant", 7, 30)) == set(users_over_time("open", 7, 30)) == {7}
    assert users_over_time("soak", 7, 30) == [7] * 30
    ramp = users_over_time("ramp", 100, 100)
    assert ramp == sorted(ramp)
    assert ramp[50] == pytest.approx(50, abs=1)
    assert users_over_time("steps", 8, 12, steps=4) == [2] * 3 + [4] * 3 + [6] * 3 + [8] * 3
    assert users_over_time("steps", 2, 4, steps=8) == [1, 1, 2, 2]  # no more steps than users
    assert users_over_time("spike", 40, 9) == [10] * 3 + [40] * 3 + [10] * 3


@pytest.mark.parametrize(
    ("rates", "place"),
    [
        ([], None),
        ([10.0], None),
        ([10.0, 20.0, 30.0], None),
        ([10.0, 20.0, 20.9], 1),
        ([10.0, 20.0, 19.0, 40.0], 1),
        ([0.0, 0.0, 5.0], None),
    ],
)
def test_saturation(rates: list[float], place: int | None) -> None:
    """Saturated is the first step that the next one does not exceed by a twentieth."""
    assert find_saturation(rates) == place


def stepping(rates: list[int]) -> LoadRun:
    """A run in steps of ten seconds, of which the first have reached these rates."""
    options = SimpleNamespace(shape="steps", run_time=80, num_users=16, shape_steps=8, worker=False)
    run = LoadRun(options, [], None, {})  # type: ignore[arg-type]
    run.plan()
    run.started = 1000.0
    for place, rate in enumerate(rates):
        for second in range(10):
            run.tally.add(RequestOutcome.RIGHT, rate, rate, 1.0, 1000.5 + 10 * place + second)
    return run


def test_steps_end_beyond_saturation() -> None:
    """Steps go on while throughput grows, and end, with the plateau in the figures, when it does not."""
    assert stepping([100, 200, 300]).users_at(30.0) == 8
    saturated = stepping([100, 200, 205, 206])
    assert saturated.users_at(30.0) == 8  # of the third step, a worker's last report may be missing
    assert saturated.users_at(40.0) is None
    assert [phase.name for phase in saturated.phases] == ["step 1", "step 2", "step 3", "step 4"]
    assert stepping([]).users_at(80.0) is None


def test_users_within_a_phase() -> None:
    """Between its ends a phase goes evenly, and never below one user."""
    phase = Phase("ramp 1", 10.0, 20.0, 0, 10)
    assert [phase.users_at(second) for second in (10, 12, 15, 20)] == [1, 2, 5, 10]


def test_gaps_are_exponential() -> None:
    """Arrivals come at the rate, and the standard deviation of their gaps equals the mean, as in a Poisson process."""
    arrivals = PoissonArrivals(50.0, 0.0, random.Random(3))
    due = arrivals.take(200.0)
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


def test_arrivals_do_not_wait() -> None:
    """A late call returns everything that became due meanwhile, each with its due time, and each once."""
    prompt, late = (PoissonArrivals(20.0, 5.0, random.Random(4)) for _ in range(2))
    times = [one for second in range(5, 15) for one in prompt.take(second + 0.5)]
    assert late.take(14.5) == times
    assert late.take(14.5) == []
    assert late.due == prompt.due > 14.5
    assert all(5.0 < one <= 14.5 for one in times)
