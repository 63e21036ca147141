"""Counts of requests. Every request that is sent ends in exactly one of these:

- ``answered``: with the scores of exactly its texts, in their order;
- ``shed``: the caller was told in so many words that the server has too much to do (503), after the client's retries;
- ``lost``: anything else. No answer by the deadline, a connection that broke, an error that the caller did not cause,
  whatever the reason: also when the server that should have answered was killed. Where a fault takes a server away, the
  client has two replicas and its documented policy (docs/client.md: another replica, a few repetitions, one deadline),
  and a request is lost if all that did not get it answered;
- ``wrong``: an answer that is not that of its texts, be it another request's, another version's, or damaged.

For hostile input ``answered`` also holds the answers that refuse it (4xx) or say of a text why it has none: what is
lost is a request that got no answer, or a 5xx that its sender caused.
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
