"""`polyhead_client.testing.FakeServer` behind a port, with the names that tests of programs use.

Every text gets one answer unless a test changes that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from polyhead_client.testing import Failure, FakeServer

__all__ = ["ANSWER", "SCHEMA", "SCORES", "FakeTriton", "serve_fake"]

REST: dict[str, Any] = {"weight": 1.0, "temperature": 1.0, "parent": None, "parent_of": None}
SCHEMA: dict[str, Any] = {
    "max_length": 16,
    "heads": [
        {"name": "topic", "kind": "single_label", "labels": ["news", "sport", "science"], "thresholds": None, **REST},
        {"name": "mood", "kind": "multi_label", "labels": ["happy", "sad"], "thresholds": [0.5, 0.4], **REST},
        {"name": "stars", "kind": "regression", "labels": [], "thresholds": None, **REST},
    ],
}
SCORES = [0.2, 0.7, 0.1, 0.9, 0.3, 3.25]
SAID = {"topic": dict(zip(("news", "sport", "science"), SCORES, strict=False)), "mood": {"happy": 0.9, "sad": 0.3},
        "stars": 3.25}  # fmt: skip
ANSWER: dict[str, Any] = {
    "heads": {
        "topic": {"kind": "single_label", "labels": ["sport"], "scores": [0.7]},
        "mood": {"kind": "multi_label", "labels": ["happy"], "scores": [0.9], "thresholds": [0.5]},
        "stars": {"kind": "regression", "value": 3.25},
    },
    "token_count": 4,
    "truncated": False,
}


def fake_server(**fields: Any) -> FakeServer:
    """A fake whose answer to every text is `ANSWER`, or its scores `SCORES`."""
    return FakeServer(**{"answer": lambda text: SAID, "heads": SCHEMA["heads"], "max_length": 16} | fields)


@dataclass
class FakeTriton:
    """What the server does and what it was asked; a test may change both while it runs."""

    server: FakeServer
    url: str

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The inference requests so far."""
        return [
            {"texts": asked.texts, "outputs": asked.outputs, "parameters": asked.parameters}
            for asked in self.server.requests
        ]

    @property
    def answer(self) -> Any:
        """The answer to a text."""
        return self.server.answer

    @answer.setter
    def answer(self, answer: Callable[[str], Any]) -> None:
        self.server.answer = answer

    @property
    def failure(self) -> Failure | None:
        """What happens to every request."""
        return self.server.failure

    @failure.setter
    def failure(self, failure: tuple[int, str] | Failure | None) -> None:
        self.server.failure = Failure(*failure) if isinstance(failure, tuple) else failure

    @property
    def delay_s(self) -> float:
        """How long each answer waits."""
        return self.server.failure.hang_s if self.server.failure else 0.0

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self.server.failure = Failure(hang_s=seconds) if seconds else None


@contextmanager
def serve_fake() -> Iterator[FakeTriton]:
    """Runs the server on a free port of the loopback interface."""
    server = fake_server()
    # The wire's own form, with a token count that does not depend on the text.
    server.answer = lambda text: ANSWER
    with server.serve() as url:
        yield FakeTriton(server, url)
