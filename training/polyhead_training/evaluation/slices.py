"""Metrics per value of a column. No value is left out without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from polyhead.schema import Schema
from polyhead_training.evaluation.metrics import Unseen, among, score_answers

QUANTILES = 4  # of a numeric column
NO_VALUE = "(no value)"  # null and blank cells


@dataclass(frozen=True)
class SliceOptions:
    """Which values of a column are shown.

    Attributes:
        most_values: the most frequent ones.
        least_rows: a value with fewer rows says little.
    """

    most_values: int = 20
    least_rows: int = 10


def score_slices(
    values: NDArray[Any],
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    schema: Schema,
    unseen: Unseen,
    options: SliceOptions,
) -> tuple[dict[str, Any], str]:
    """Metrics per value, the most frequent first, and a sentence about what is left out; empty if nothing is.

    A column of many numbers is cut into quantiles. If no value has enough rows, those with most rows are shown.

    Args:
        values: texts or None, one per row.
    """
    named = _names(values, options.most_values)
    counts = named.value_counts()
    least = min(options.least_rows, int(counts.max()))
    enough = counts[counts >= least]
    shown = enough.index[: options.most_values]
    results = {}
    for value in shown:
        rows = np.flatnonzero(named == value)
        part = {head: among(by_row, rows) for head, by_row in unseen.items()}
        metrics = score_answers(scores[rows], labels[rows], schema, part)
        results[str(value)] = {"rows": len(rows), "heads": metrics}
    return results, _left_out(counts, len(enough), len(shown), least)


def _names(values: NDArray[Any], most_values: int) -> pandas.Series:
    """The slice of each row."""
    texts = pandas.Series(values, dtype=object).map(lambda value: None if value is None else str(value).strip())
    is_there = texts.notna() & (texts != "")
    numbers = pandas.to_numeric(texts.where(is_there), errors="coerce").astype(float)
    if np.isfinite(numbers[is_there]).all() and numbers.nunique() > most_values:
        texts = pandas.qcut(numbers, QUANTILES, duplicates="drop").astype(object)
    return texts.where(is_there, NO_VALUE).astype(str)


def _left_out(counts: pandas.Series, enough: int, shown: int, least: int) -> str:
    rare, beyond = counts.iloc[enough:], counts.iloc[shown:enough]
    parts = []
    if len(rare):
        parts.append(f"{len(rare)} with fewer than {least} rows each ({rare.sum()} rows)")
    if len(beyond):
        parts.append(f"{len(beyond)} less frequent ones ({beyond.sum()} rows)")
    if not parts:
        return ""
    left = counts.iloc[shown:]
    return (
        f"{len(left)} of {len(counts)} values, {left.sum()} of {counts.sum()} rows, are not shown: "
        f"{' and '.join(parts)}; --slice-rows 1 --slice-values {len(counts)} shows all."
    )
