"""Whose answer a wrong answer is: one that fits another text was given to the wrong caller."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.golden import GoldenRow
from loadtest.verify import find_mismatches
from polyhead_client import ModelSchema, MultiLabel, Prediction, Regression, SingleLabel


def find_owner(
    prediction: Prediction, asked: GoldenRow, rows: Sequence[GoldenRow], schema: ModelSchema, tolerance: float
) -> GoldenRow | None:
    """Another text that the answer is right for; None if there is none."""
    said = _scores_by_column(prediction, schema)
    for row in rows:
        if row.text == asked.text or row.token_count != prediction.token_count:
            continue
        # Comparing in full takes a hundred times as long, and there may be thousands of rows.
        near = all(abs(row.scores[column] - score) <= tolerance * max(1.0, abs(score)) for column, score in said)
        if near and not find_mismatches(prediction, row, schema, tolerance):
            return row
    return None


def _scores_by_column(prediction: Prediction, schema: ModelSchema) -> list[tuple[int, float]]:
    found = []
    for head in schema.heads:
        first = schema.columns[head.name].start
        match prediction.heads.get(head.name):
            case Regression(value):
                found.append((first, value))
            case SingleLabel(labels) | MultiLabel(labels):
                places = {label: place for place, label in enumerate(head.labels)}
                found += [(first + places[one.label], one.score) for one in labels if one.label in places]
    return found
