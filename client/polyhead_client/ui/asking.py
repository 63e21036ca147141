"""One text asked of one or two servers: what the page shows of it. An error of a server becomes a sentence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_client.client import Client
from polyhead_client.errors import BadResponseError, PolyheadClientError
from polyhead_client.prediction import Prediction
from polyhead_client.schema import ModelSchema
from polyhead_client.ui.decided import SAME, Bounds, DecidedHead, decide

TextOrFields = str | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """A model that the page asks.

    Attributes:
        title: how the page calls it: server, model and version.
    """

    title: str
    client: Client


@dataclass(frozen=True, slots=True)
class SideAnswer:
    """What a side says about a text, or why it says nothing.

    Attributes:
        scores: of all heads, ``(schema.width,)``.
        latency_ms: from the question to the answer, as this program measures it.
        error: one sentence; the fields before it are then empty.
        asked_ns: when, to tell two equal answers apart.
    """

    title: str
    schema: ModelSchema | None = None
    prediction: Prediction | None = None
    scores: NDArray[np.float32] | None = None
    latency_ms: float = 0.0
    error: str | None = None
    asked_ns: int = field(default_factory=time.time_ns)

    def decided(self, bounds: Bounds) -> dict[str, DecidedHead]:
        """The answer of each head at these thresholds; empty if there is none."""
        if self.schema is None or self.prediction is None or self.scores is None:
            return {}
        return decide(self.schema, self.prediction, self.scores, bounds)


def side_titles(sides: Sequence[tuple[Sequence[str], str, str]]) -> list[str]:
    """How the page calls each side, by servers, model and version: of two sides, only what differs between them."""
    parts = [
        (", ".join(servers), model, f"version {version}" if version else "newest version")
        for servers, model, version in sides
    ]
    differing = [place for place in range(3) if len({one[place] for one in parts}) > 1]
    if len(parts) == 1:
        servers, model, version = parts[0]
        return [f"{model}, {version}, at {servers}"]
    if not differing:
        return [f"{number}: {', '.join(one)}" for number, one in enumerate(parts, start=1)]
    return [", ".join(one[place] for place in differing) for one in parts]


def ask(side: Side, text: TextOrFields) -> SideAnswer:
    """Asks for schema, answer and scores; the time of the answer is measured."""
    try:
        schema = side.client.schema()
        started = time.perf_counter()
        prediction = side.client.classify(text)
        latency_ms = 1000 * (time.perf_counter() - started)
        if prediction.error is not None:
            return SideAnswer(side.title, error=f"This text has no answer: {prediction.error}.")
        (scores,) = side.client.scores([text])
        if not np.isfinite(scores).all():
            raise BadResponseError("the text has an answer but no scores; was the model replaced? Ask again")
        answer = SideAnswer(side.title, schema, prediction, scores, latency_ms)
        answer.decided({})  # raises if they do not fit together
    except PolyheadClientError as error:
        return SideAnswer(side.title, error=as_sentence(error))
    return answer


def as_sentence(error: Exception) -> str:
    """The message of an error as a sentence."""
    message = capitalized(str(error).strip() or type(error).__name__)
    return message if message.endswith((".", "?", "!")) else f"{message}."


def capitalized(message: str) -> str:
    """The message with a capital at its beginning."""
    return f"{message[:1].upper()}{message[1:]}"


def tolerance_of(schemas: Sequence[ModelSchema | None]) -> float:
    """How far the scores of two models may be apart and still be the same."""
    return max([SAME, *(schema.tolerance or 0.0 for schema in schemas if schema is not None)])
