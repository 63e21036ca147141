"""Counts of requests. Every request that is sent ends in exactly one of these:

- ``answered``: with the scores of exactly its texts, in their order;
- ``shed``: with 503, because the server has too much to do, after the client's retries;
- ``lost``: in any other way, whatever the reason: no answer by the deadline, a broken connection, an error that the
  caller did not cause. This includes requests to a killed server. If a fault takes a server away, the client has two
  replicas and its documented policy (docs/client.md: another replica, a few retries, one deadline), and a request is
  lost if that policy did not get it answered;
- ``wrong``: with another answer than its texts': another request's, another version's, or a damaged one.

For hostile input, ``answered`` includes refusals (4xx) and texts with an error. A hostile request is lost if it got no
answer, or a 5xx that its sender caused.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from typing import Literal

Outcome = Literal["answered", "shed", "lost", "wrong"]
EXAMPLES_KEPT = 10


@dataclass
class Count:
    """How many requests ended how; safe to use from threads. `examples` describes the first lost or wrong ones."""

    requests: int = 0
    answered: int = 0
    shed: int = 0
    lost: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, outcome: Outcome, example: str = "") -> None:
        """Counts one request."""
        with self._lock:
            self.requests += 1
            setattr(self, outcome, getattr(self, outcome) + 1)
            if outcome in ("lost", "wrong") and len(self.examples) < EXAMPLES_KEPT:
                self.examples.append(f"{outcome}: {example}")

    def numbers(self) -> dict[str, int]:
        """The five numbers."""
        with self._lock:
            numbers = asdict(self)
        del numbers["examples"]
        return numbers

    def __add__(self, other: Count) -> Count:
        total = {name: value + other.numbers()[name] for name, value in self.numbers().items()}
        return Count(**total, examples=[*self.examples, *other.examples][:EXAMPLES_KEPT])
