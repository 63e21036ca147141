"""How load goes over time: each shape is a list of phases, and open arrivals come at random times.

This module and everything it imports must not import locust, because locust patches the interpreter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

# Shape: its length in seconds without -t.
SHAPES = {"constant": 60, "ramp": 120, "steps": 120, "spike": 90, "soak": 1200, "open": 60}
LEAST_GAIN = 0.05  # a step that adds a smaller share of throughput has passed saturation
RAMP_PHASES = 5
SOAK_PHASES = 10


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run, in seconds from the run's start. The number of users changes evenly from start to end."""

    name: str
    start_s: float
    end_s: float
    users_from: int
    users_to: int

    def users_at(self, elapsed_s: float) -> int:
        """How many users there should be; at least one."""
        share = (elapsed_s - self.start_s) / (self.end_s - self.start_s)
        return max(1, round(self.users_from + share * (self.users_to - self.users_from)))


def phases_of(shape: str, users: int, duration_s: float, steps: int) -> list[Phase]:
    """The phases of a shape whose highest load is `users`."""
    match shape:
        case "ramp":
            levels = [users * part // RAMP_PHASES for part in range(RAMP_PHASES + 1)]
            return _equal_phases("ramp", duration_s, list(pairwise(levels)))
        case "steps":
            levels = sorted({max(1, users * step // steps) for step in range(1, steps + 1)})
            return _equal_phases("step", duration_s, [(level, level) for level in levels])
        case "spike":
            usual = max(1, users // 4)
            parts = _equal_phases("", duration_s, [(usual, usual), (users, users), (usual, usual)])
            return [replace(part, name=name) for name, part in zip(("before", "spike", "after"), parts, strict=True)]
        case "soak":
            return _equal_phases("soak", duration_s, [(users, users)] * SOAK_PHASES)
        case _:
            return [Phase(shape, 0.0, duration_s, users, users)]


def _equal_phases(name: str, duration_s: float, levels: Sequence[tuple[int, int]]) -> list[Phase]:
    length = duration_s / len(levels)
    return [
        Phase(f"{name} {place + 1}", place * length, (place + 1) * length, *users) for place, users in enumerate(levels)
    ]


def find_saturation(rates: Sequence[float]) -> int | None:
    """The first step after which throughput hardly grew; None if it grew at every step."""
    for place, (rate, following) in enumerate(pairwise(rates)):
        if rate > 0 and following < rate * (1 + LEAST_GAIN):
            return place
    return None


class PoissonArrivals:
    """The times at which the requests of an open load are due, whatever happened to earlier requests.

    Independent callers arrive like that: their gaps are exponential, and several such sources together are one source
    with the sum of their rates. A closed user waits for its answer before it sends again. It sends less while the
    server is slow, and so hides the waiting that overload causes (coordinated omission).

    Attributes:
        due: when the next request should start, on the clock of `start`.
    """

    def __init__(self, per_second: float, start: float, draw: random.Random) -> None:
        self._per_second = per_second
        self._draw = draw
        self.due = start + draw.expovariate(per_second)

    def take(self, now: float) -> list[float]:
        """The due times up to `now` that were not taken before."""
        taken = []
        while self.due <= now:
            taken.append(self.due)
            self.due += self._draw.expovariate(self._per_second)
        return taken
