"""Open arrivals: requests that start when they are due, whatever became of those before them.

Independent users come like that. A user who waits for an answer before asking again, as in the closed shapes, asks less
while the server is slow, and so hides just the waiting that an overload causes (coordinated omission).
"""

from __future__ import annotations

import random


class PoissonArrivals:
    """When requests are due, with exponential gaps; several such sources together are one of their rates' sum.

    Attributes:
        due: when the next request should start, on the clock of `start`.
    """

    def __init__(self, per_second: float, start: float, draw: random.Random) -> None:
        self._per_second = per_second
        self._draw = draw
        self.due = start + draw.expovariate(per_second)

    def take(self, now: float) -> list[float]:
        """When the requests were due that have not been taken and are due by `now`."""
        taken = []
        while self.due <= now:
            taken.append(self.due)
            self.due += self._draw.expovariate(self._per_second)
        return taken
