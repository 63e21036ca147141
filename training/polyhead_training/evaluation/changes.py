"""What changed between two runs, row by row and label by label, for one head.

Tables have a row per text, in the same order: ``text``, ``HEAD_true``, the answers, and if known ``file`` and ``row``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from polyhead.schema import HeadKind
from polyhead_training.evaluation.headline import Parts
from polyhead_training.evaluation.reported_run import answer_column
from polyhead_training.evaluation.wording import number, shorten

MOST_ROWS = 15  # that got better, and as many that got worse
MOST_LABELS = 15
LONGEST_TEXT = 5_000  # characters
PLACE = ["file", "row"]


@dataclass(frozen=True)
class ChangedRow:
    """A row that two runs answer differently."""

    place: str
    text: str
    true: str
    before: str
    after: str


@dataclass(frozen=True)
class ChangedLabel:
    """How many rows with a label each run answers rightly."""

    label: str
    rows: int
    before: int
    after: int


def row_parts(table: pandas.DataFrame, name: str, kind: HeadKind) -> Parts:
    """What each row adds to the two sums of the main metric; as `headline_parts`, from a table."""
    true, answer = table[f"{name}_true"], table[answer_column(name, kind)]
    over = np.ones(len(table))
    match kind:
        case HeadKind.SINGLE_LABEL:
            return np.stack([(true == answer).to_numpy(float), over], axis=1)
        case HeadKind.MULTI_LABEL:
            pairs = [(set(t), set(a)) for t, a in zip(true, answer, strict=True)]
            return np.array([(2 * len(t & a), len(t) + len(a)) for t, a in pairs], dtype=float).reshape(-1, 2)
        case HeadKind.REGRESSION:
            return np.stack([np.abs(answer.to_numpy(float) - true.to_numpy(float)), over], axis=1)


def row_gains(kind: HeadKind, first: Parts, second: Parts) -> NDArray[np.float64]:
    """How much better the second answer to each row is: right or not, labels that are no longer wrong, error."""
    match kind:
        case HeadKind.SINGLE_LABEL:
            return np.asarray(second[:, 0] - first[:, 0])
        case HeadKind.MULTI_LABEL:  # wrong labels: all given and answered labels, without those that are in both
            return np.asarray((first[:, 1] - first[:, 0]) - (second[:, 1] - second[:, 0]))
        case HeadKind.REGRESSION:
            return np.asarray(first[:, 0] - second[:, 0])


def changed_rows(
    name: str, kind: HeadKind, before: pandas.DataFrame, after: pandas.DataFrame, gains: NDArray[np.float64]
) -> tuple[list[ChangedRow], list[ChangedRow]]:
    """The rows that got better and those that got worse, the most telling first: large changes, and sure answers."""
    telling = np.abs(gains) + _confidence(name, kind, before) + _confidence(name, kind, after)
    better, worse = (
        [
            _changed(name, kind, before, after, int(row))
            for row in rows[np.argsort(-telling[rows], kind="stable")][:MOST_ROWS]
        ]
        for rows in (np.flatnonzero(gains > 0), np.flatnonzero(gains < 0))
    )
    return better, worse


def _confidence(name: str, kind: HeadKind, table: pandas.DataFrame) -> NDArray[np.float64]:
    """Tells rows with the same change apart. Below a half."""
    column = f"{name}_score"
    if kind != HeadKind.SINGLE_LABEL or column not in table:
        return np.zeros(len(table))
    return np.asarray(table[column].fillna(0).to_numpy(float)) * 0.49


def _changed(name: str, kind: HeadKind, before: pandas.DataFrame, after: pandas.DataFrame, row: int) -> ChangedRow:
    first, second, column = before.iloc[row], after.iloc[row], answer_column(name, kind)
    place = f"{second['file']}, row {second['row']:,}" if set(PLACE) <= set(after.columns) else ""
    return ChangedRow(
        place=place,
        text=shorten(str(second["text"]), LONGEST_TEXT),
        true=shown(comparable(second[f"{name}_true"])),
        before=shown(comparable(first[column])),
        after=shown(comparable(second[column])),
    )


def changed_labels(name: str, kind: HeadKind, before: pandas.DataFrame, after: pandas.DataFrame) -> list[ChangedLabel]:
    """The labels whose number of rightly answered rows changed most."""
    if kind == HeadKind.REGRESSION:
        return []
    true, column = before[f"{name}_true"], answer_column(name, kind)
    counts = [_right_by_label(true, table[column]) for table in (before, after)]
    rows = _right_by_label(true, true)
    found = [
        ChangedLabel(label, count, counts[0].get(label, 0), counts[1].get(label, 0)) for label, count in rows.items()
    ]
    changed = [label for label in found if label.before != label.after]
    return sorted(changed, key=lambda label: -abs(label.after - label.before))[:MOST_LABELS]


def _right_by_label(true: pandas.Series, answer: pandas.Series) -> dict[str, int]:
    counts: dict[str, int] = {}
    for given, answered in zip(true, answer, strict=True):
        for label in as_set(given) & as_set(answered):
            counts[label] = counts.get(label, 0) + 1
    return counts


def as_set(value: Any) -> set[str]:
    """The labels of an answer of one or of several labels."""
    return {value} if isinstance(value, str) else set(value)


def comparable(value: Any) -> Any:
    """A label, a number, or the set of the labels in a list."""
    return value if isinstance(value, str) or np.isscalar(value) else frozenset(value)


def shown(value: Any) -> str:
    """What `comparable` gives, for a person."""
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "no label"
    return value if isinstance(value, str) else number(value)
