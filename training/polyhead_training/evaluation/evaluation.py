"""An evaluation: the serving engine's answers to the texts of a split, and their metrics, also per slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
from numpy.typing import NDArray

from polyhead.decode import are_answers
from polyhead.predictor import NOT_FINITE, Predictor
from polyhead.schema import Schema
from polyhead_rows.progress import progress
from polyhead_training.errors import DataError
from polyhead_training.evaluation.metrics import HEADLINE, score_answers
from polyhead_training.evaluation.suspects import Suspect

if TYPE_CHECKING:
    from polyhead_training.data.corpus import Split  # its libraries take seconds to import

TEXTS_PER_CALL = 512
SLICE_VALUES = 20  # the most frequent ones
SLICE_ROWS = 10  # fewer rows say little
QUANTILES = 4  # of a numeric column


@dataclass(frozen=True)
class Evaluation:
    """The texts, what the engine answered, and how good the answers are.

    Attributes:
        labels: ``(n, sum of label widths)``; NaN where unknown.
        scores: calibrated ``(n, schema.width)``.
        token_counts, truncated: how much of each text was read.
        metrics: by head name.
        slices: by column and value: ``rows`` and ``heads``, which is as `metrics`.
        dropped: how many rows had no usable text.
        failed_texts, failed_labels: the texts whose scores are not finite, because the model's numbers overflow, and
            their labels. They are in none of the fields above.
        measured_on: one sentence: which rows these are, and whether anything was chosen on them.
        files, rows, splits: of each text its file, its row there (as error messages count rows), and its split.
        baselines: by head name, ``linear`` or ``majority``, and metric.
        suspects: labels that are probably wrong in the data, the most certain ones first.
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
    failed_texts: Sequence[str] = ()
    failed_labels: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    measured_on: str = ""
    files: Sequence[str] = ()
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    splits: Sequence[str] = ()
    baselines: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    suspects: Sequence[Suspect] = ()

    def slice_tables(self) -> list[dict[str, Any]]:
        """Per sliced ``column``: the ``columns`` of its table, and ``rows`` with each head's main score per value."""
        heads = [(head.name, HEADLINE[head.kind]) for head in self.schema]
        return [
            {
                "column": column,
                "columns": [column, "rows", *(f"{name} {metric}" for name, metric in heads)],
                "rows": [
                    [value, found["rows"], *(found["heads"][name].get(metric) for name, metric in heads)]
                    for value, found in values.items()
                ],
            }
            for column, values in self.slices.items()
        ]


def evaluate(
    predictor: Predictor,
    split: Split,
    slices: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    show_progress: bool = False,
) -> Evaluation:
    """Answers all texts of a split as serving does, and measures the answers.

    Args:
        slices: metadata columns of the split. The metrics are also given for each of their values.
        say: gets one line about the texts.
    """
    texts, labels = list(split.texts), split.labels
    scores = np.empty((len(texts), predictor.schema.width), dtype=np.float32)
    counts, truncated = np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=bool)
    with progress("answering", len(texts), unit="texts", shown=show_progress) as bar:
        for start in range(0, len(texts), TEXTS_PER_CALL):
            part = slice(start, start + TEXTS_PER_CALL)
            encoded = predictor.encode(texts[part], are_rendered=True)
            scores[part] = predictor.score(encoded)
            counts[part] = [text.token_count for text in encoded]
            truncated[part] = [text.truncated for text in encoded]
            bar.advance(len(encoded))
    read = (counts > 0) & are_answers(scores)
    failed = (counts > 0) & ~read
    if not read.any():
        raise DataError(f"no row has a text that can be {'answered: ' + NOT_FINITE if failed.any() else 'read'}")
    dropped = split.dropped + split.bad + int((counts == 0).sum())
    failed_texts, failed_labels = _selected(texts, failed), labels[failed]
    texts = _selected(texts, read)
    scores, labels, counts, truncated = scores[read], labels[read], counts[read], truncated[read]
    say(
        f"{len(texts)} texts answered, {int(truncated.sum())} of them truncated to {predictor.max_length} tokens, "
        f"{dropped} unreadable"
        + (f' ({split.bad} of them bad rows, left out by bad_rows = "skip")' if split.bad else "")
        + (f", {split.filtered} left out by where and filters" if split.filtered else "")
        + (f", {len(failed_texts)} left out because {NOT_FINITE}" if failed_texts else "")
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
        failed_texts=failed_texts,
        failed_labels=failed_labels,
    )


def _selected(texts: Sequence[str], rows: NDArray[np.bool_]) -> list[str]:
    return [text for text, is_selected in zip(texts, rows, strict=True) if is_selected]


def _score_slices(
    values: pandas.Series, scores: NDArray[np.float32], labels: NDArray[np.float32], schema: Schema
) -> dict[str, Any]:
    """Metrics per value. A column of many numbers is cut into quantiles."""
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
