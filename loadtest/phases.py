"""How load goes over time: each shape is a list of phases, and what is measured is told by phase.

locust is not imported here, nor by what imports this: it patches the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Shape: seconds where -t does not say.
SHAPES = {"constant": 60, "ramp": 120, "steps": 120, "spike": 90, "soak": 1200, "open": 60}
LEAST_GAIN = 0.05  # a step that adds less throughput than this share adds users in vain
RAMP_PHASES = 5
SOAK_PHASES = 10


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run, in seconds from its start; the users go evenly from the first number to the second."""

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
            return _parts("ramp", duration_s, list(pairwise(levels)))
        case "steps":
            levels = sorted({max(1, users * step // steps) for step in range(1, steps + 1)})
            return _parts("step", duration_s, [(level, level) for level in levels])
        case "spike":
            usual = max(1, users // 4)
            before, peak, after = _parts("", duration_s, [(usual, usual), (users, users), (usual, usual)])
            return [
                Phase(name, part.start_s, part.end_s, part.users_from, part.users_to)
                for name, part in (("before", before), ("spike", peak), ("after", after))
            ]
        case "soak":
            return _parts("soak", duration_s, [(users, users)] * SOAK_PHASES)
        case _:
            return [Phase(shape, 0.0, duration_s, users, users)]


def _parts(name: str, duration_s: float, levels: Sequence[tuple[int, int]]) -> list[Phase]:
    length = duration_s / len(levels)
    return [
        Phase(f"{name} {place + 1}", place * length, (place + 1) * length, *users) for place, users in enumerate(levels)
    ]


def find_saturation(rates: Sequence[float]) -> int | None:
    """The first step whose follower added next to nothing; None where each one added something."""
    for place, (rate, following) in enumerate(pairwise(rates)):
        if rate > 0 and following < rate * (1 + LEAST_GAIN):
            return place
    return None
