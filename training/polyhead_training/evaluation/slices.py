"""Metrics per value of a column. No value is left out without a word."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from polyhead.schema import Schema
from polyhead_training.evaluation.headline import headline_parts, ratio
from polyhead_training.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, Unseen, among, answers_of, score_answers

QUANTILES = 4  # of a numeric column
NO_VALUE = "(no value)"  # null and blank cells
WORST_FIRST = "The worst groups come first: those whose main score is below that of all rows by most standard errors."


@dataclass(frozen=True)
class SliceOptions:
    """Which values of a column are shown.

    Attributes:
        most_values: the most frequent ones.
        least_rows: a value with fewer rows says little.
        group_column: its values are groups. The worst come first, and numbers are names.
    """

    most_values: int = 20
    least_rows: int = 10
    group_column: str = ""


def score_slices(
    values: NDArray[Any],
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    schema: Schema,
    unseen: Unseen,
    options: SliceOptions,
    column: str = "",
) -> tuple[dict[str, Any], str]:
    """Metrics per value, the most frequent first, and a sentence about what is left out; empty if nothing is.

    A column of many numbers is cut into quantiles. If no value has enough rows, those with most rows are shown. Of
    groups, the worst come first, and none with few rows is shown, because the worst of many are often so by chance.

    Args:
        values: texts or None, one per row.
    """
    are_groups = column != "" and column == options.group_column
    named = _names(values, None if are_groups else options.most_values)
    counts = named.value_counts()
    least = options.least_rows if are_groups else min(options.least_rows, int(counts.max()))
    enough = counts[counts >= least]
    if are_groups:
        enough = enough.loc[_worst_first(named, scores, labels, schema, unseen, enough.index)]
    shown = enough.index[: options.most_values]
    results = {}
    for value in shown:
        rows = np.flatnonzero(named == value)
        part = {head: among(by_row, rows) for head, by_row in unseen.items()}
        metrics = score_answers(scores[rows], labels[rows], schema, part)
        results[str(value)] = {"rows": len(rows), "heads": metrics}
    if not are_groups:
        return results, _left_out(counts, enough, shown, least, "less frequent ones", "")
    note = _left_out(counts, enough, shown, least, "better ones", f"polyhead-evaluate --slice {shlex.quote(column)} ")
    return results, f"{WORST_FIRST} {note}".rstrip()


def _worst_first(
    named: pandas.Series,
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    schema: Schema,
    unseen: Unseen,
    groups: pandas.Index,
) -> pandas.Index:
    """The groups in the order of how sure it is that their rows are answered worse than all rows, by any head."""
    distances = []
    codes = groups.get_indexer(named)  # -1 for other groups
    for part in answers_of(scores, labels, schema, unseen):
        if not len(part.true):
            continue
        rows, places = headline_parts(part), codes[part.known]
        gain = rows[:, 0] - float(ratio(rows.sum(axis=0))) * rows[:, 1]
        gain *= -1 if HEADLINE[part.head.kind] in LOWER_IS_BETTER else 1
        sums, sizes = (
            np.bincount(places[places >= 0], weights=each[places >= 0], minlength=len(groups))
            for each in (gain, np.ones(len(gain)))
        )
        distances.append(sums / np.maximum(np.sqrt(sizes) * gain.std(), np.finfo(np.float64).tiny))
    return groups[np.argsort(np.min(distances, axis=0), kind="stable")] if distances else groups


def _names(values: NDArray[Any], most_numbers: int | None) -> pandas.Series:
    """The slice of each row. More than `most_numbers` numbers are cut into quantiles."""
    texts = pandas.Series(values, dtype=object).map(lambda value: None if value is None else str(value).strip())
    is_there = texts.notna() & (texts != "")
    if most_numbers is not None:
        numbers = pandas.to_numeric(texts.where(is_there), errors="coerce").astype(float)
        if np.isfinite(numbers[is_there]).all() and numbers.nunique() > most_numbers:
            texts = pandas.qcut(numbers, QUANTILES, duplicates="drop").astype(object)
    return texts.where(is_there, NO_VALUE).astype(str)


def _left_out(
    counts: pandas.Series, enough: pandas.Series, shown: pandas.Index, least: int, others: str, command: str
) -> str:
    rare, beyond = counts.drop(enough.index), enough.iloc[len(shown) :]
    parts = []
    if len(rare):
        parts.append(f"{len(rare)} with fewer than {least} rows each ({rare.sum()} rows)")
    if len(beyond):
        parts.append(f"{len(beyond)} {others} ({beyond.sum()} rows)")
    if not parts:
        return ""
    left = rare.sum() + beyond.sum()
    return (
        f"{len(rare) + len(beyond)} of {len(counts)} values, {left} of {counts.sum()} rows, are not shown: "
        f"{' and '.join(parts)}; {command}--slice-rows 1 --slice-values {len(counts)} shows all."
    )
