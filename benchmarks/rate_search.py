"""The highest rate that meets objectives: by doubling, then by halving what lies between, in so many runs at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar


class Point(Protocol):
    """What a run at one rate found."""

    @property
    def met(self) -> bool:
        """Whether all objectives were."""


P = TypeVar("P", bound=Point)


def find_highest(measure: Callable[[float], P], start: float, closeness: float, most_runs: int) -> dict[float, P]:
    """Measures rates around the highest that meets the objectives.

    Args:
        measure: a run at a rate.
        start: the first rate.
        closeness: ends when the lowest missed rate is at most so many times the highest met one, such as 1.05.
        most_runs: ends then in any case.

    Returns:
        All points by rate; `highest_met` picks the one that was sought.
    """
    points: dict[float, P] = {}
    while len(points) < most_runs:
        met = highest_met(points)
        missed = min((rate for rate, point in points.items() if not point.met and rate > (met or 0)), default=None)
        if met is None:
            rate = start if missed is None else missed / 2
        elif missed is None:
            rate = 2 * met
        elif missed <= met * closeness:
            break
        else:
            rate = math.sqrt(met * missed)
        rate = float(f"{rate:.3g}")
        if rate in points:
            break
        points[rate] = measure(rate)
    return points


def highest_met(points: dict[float, P]) -> float | None:
    """The highest rate below which, as far as measured, all objectives were met; None if at none."""
    highest = None
    for rate in sorted(points):
        if not points[rate].met:
            break
        highest = rate
    return highest
