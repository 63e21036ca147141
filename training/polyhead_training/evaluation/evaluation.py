"""An evaluation: the serving engine's answers to the texts of a split, and how good they are, slices included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
from numpy.typing import NDArray

from polyhead.predictor import Predictor
from polyhead.schema import Schema
from polyhead_training.errors import DataError
from polyhead_training.evaluation.metrics import score_answers

if TYPE_CHECKING:
    from polyhead_training.data.corpus import Split  # whose libraries take seconds to import

TEXTS_A_CALL = 512
SLICE_VALUES = 20  # the most frequent ones
SLICE_ROWS = 10  # fewer say little
QUANTILES = 4  # of a numeric column


@dataclass(frozen=True)
class Evaluation:
    """What was asked, what the engine answered, and how good that is.

    Attributes:
        labels: ``(n, sum of label widths)``; NaN where unknown.
        scores: calibrated ``(n, schema.width)``.
        token_counts, truncated: how much of each text was read.
        metrics: by head name.
        slices: by column and value: ``rows`` and ``heads``, which is as `metrics`.
        dropped: how many rows had no readable text.
    """

    schema: Schema
    max_length: int
    texts: Sequence[str]
    labels: NDArray[np.float32]
    scores: NDArray[np.float32]
    token_counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    metrics: dict[str, dict[str, float]]
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    dropped: int = 0


def evaluate(
    predictor: Predictor,
    split: Split,
    slices: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Answers all texts of a split as serving does, and scores the answers.

    Args:
        slices: metadata columns of the split, for whose values the metrics are also given.
        say: is told in a line what was found.
        advance: is told how many more texts have been answered.
    """
    texts, labels = list(split.texts), split.labels
    scores = np.empty((len(texts), predictor.schema.width), dtype=np.float32)
    counts, truncated = np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=bool)
    for start in range(0, len(texts), TEXTS_A_CALL):
        part = slice(start, start + TEXTS_A_CALL)
        encoded = predictor.encode(texts[part])
        scores[part] = predictor.score(encoded)
        counts[part] = [text.token_count for text in encoded]
        truncated[part] = [text.truncated for text in encoded]
        advance(len(encoded))
    read = counts > 0
    if not read.any():
        raise DataError("none of the rows has a text that can be read")
    dropped = split.dropped + int((~read).sum())
    texts = [text for text, is_read in zip(texts, read, strict=True) if is_read]
    scores, labels, counts, truncated = scores[read], labels[read], counts[read], truncated[read]
    say(
        f"{len(texts)} texts answered, {int(truncated.sum())} of them truncated to {predictor.max_length} tokens, "
        f"{dropped} unreadable" + (f", {split.filtered} left out by where and filters" if split.filtered else "")
    )
    by_column = {}
    for column in slices:
        values = pandas.Series(split.rows[column][:])[read].reset_index(drop=True)
        by_column[column] = _score_slices(values, scores, labels, predictor.schema)
    return Evaluation(
        schema=predictor.schema,
        max_length=predictor.max_length,
        texts=texts,
        labels=labels,
        scores=scores,
        token_counts=counts,
        truncated=truncated,
        metrics=score_answers(scores, labels, predictor.schema),
        slices=by_column,
        dropped=dropped,
    )


def _score_slices(
    values: pandas.Series[Any], scores: NDArray[np.float32], labels: NDArray[np.float32], schema: Schema
) -> dict[str, Any]:
    """Metrics a value; a number's values are cut into quantiles."""
    numbers = pandas.to_numeric(values, errors="coerce")
    if (numbers.notna() == values.notna()).all() and numbers.nunique() > SLICE_VALUES:
        values = pandas.qcut(numbers, QUANTILES, duplicates="drop")
    values = values[values.notna()].astype(str)
    counts = values.value_counts()
    results = {}
    for value in counts[counts >= min(SLICE_ROWS, counts.max() if len(counts) else 0)].index[:SLICE_VALUES]:
        rows = values.index[values == value]
        results[str(value)] = {"rows": len(rows), "heads": score_answers(scores[rows], labels[rows], schema)}
    return results
