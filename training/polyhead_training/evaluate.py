"""Evaluation of a checkpoint by the serving engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.predictor import Predictor
from polyhead.schema import Schema
from polyhead_training.data import Split
from polyhead_training.metrics import evaluate as evaluate_logits


@dataclass(frozen=True)
class Evaluation:
    """What the engine answers and how good that is."""

    schema: Schema
    metrics: dict[str, Any]


def evaluate(
    predictor: Predictor, split: Split, slices: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
) -> Evaluation:
    """Scores of a split."""
    encoded = predictor.encode(list(split.texts))
    logits: NDArray[np.float32] = predictor._engine.logits([text.token_ids for text in encoded])
    return Evaluation(predictor.schema, evaluate_logits(logits, split.labels, predictor.schema))
