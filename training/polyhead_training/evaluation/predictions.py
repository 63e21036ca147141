"""The rows behind the numbers: ``predictions.parquet``, and ``suspects.csv`` for labels that are probably wrong.

A prediction has the text, its place and split, answers, scores and true labels.

Whoever opens it can compute any metric, choose other thresholds, and join it with the source file: ``row`` is counted
from 1 in ``file``, without the header and blank lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from polyhead.decode import DecodeOptions, decode
from polyhead.predictor import NOT_FINITE
from polyhead.schema import Head, HeadKind
from polyhead_rows.answers import answer_table
from polyhead_rows.output import open_output
from polyhead_training.evaluation.evaluation import Evaluation

ROWS_PER_PART = 4096  # held in memory as Python objects
LABELS = b"labels"  # the metadata of a column of scores
_TRUE_TYPES = {
    HeadKind.SINGLE_LABEL: pyarrow.string(),
    HeadKind.MULTI_LABEL: pyarrow.list_(pyarrow.string()),
    HeadKind.REGRESSION: pyarrow.float32(),
}
_SUSPECTS = pyarrow.schema(
    [
        ("head", pyarrow.string()),
        ("given", pyarrow.string()),
        ("proposed", pyarrow.string()),
        ("score", pyarrow.float32()),
        ("file", pyarrow.string()),
        ("row", pyarrow.int64()),
        ("split", pyarrow.string()),
        ("text", pyarrow.string()),
    ]
)


def write_predictions(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Writes one row per text of all evaluations, which are of one model.

    Columns: ``file``, ``row``, ``split``, ``text``, those of `polyhead_rows.answers`, ``HEAD_rejected`` of a head that
    may reject (whether serving answers without a label; ``HEAD_label`` is the best label even so), and per head
    ``HEAD_true`` (the label, labels or number in the data; null if unknown) and ``HEAD_scores`` (of all its labels, in
    the order of the JSON list ``labels`` in the column's metadata; a regression has none). Texts without finite scores
    come last in their evaluation, with an ``error``.
    """
    with open_output(path, _answered(evaluations[0], np.arange(0)).schema) as output:
        for evaluation in evaluations:
            for start in range(0, len(evaluation.texts), ROWS_PER_PART):
                output.write(_answered(evaluation, np.arange(start, min(start + ROWS_PER_PART, len(evaluation.texts)))))
            if evaluation.failed is not None:
                output.write(_failed(evaluation.failed))


def _answered(evaluation: Evaluation, rows: NDArray[np.int64]) -> pyarrow.Table:
    schema = evaluation.schema
    answers: list[dict[str, Any]] = [
        {
            "heads": decode(evaluation.scores[row], schema, DecodeOptions()),
            "token_count": int(evaluation.token_counts[row]),
            "truncated": bool(evaluation.truncated[row]),
        }
        for row in rows
    ]
    for answer in answers:
        answer["rejected"] = {
            name: head.pop("label") is None for name, head in answer["heads"].items() if "label" in head
        }
    scores = {
        head.name: evaluation.scores[rows, schema.columns[head.name]]
        for head in schema
        if head.kind != HeadKind.REGRESSION
    }
    return _table(evaluation, rows, answers, scores)


def _failed(failed: Evaluation) -> pyarrow.Table:
    rows = np.arange(len(failed.texts))
    return _table(failed, rows, [{"error": NOT_FINITE}] * len(rows), {})


def _table(
    evaluation: Evaluation, rows: NDArray[np.int64], answers: Sequence[Any], scores: dict[str, NDArray[np.float32]]
) -> pyarrow.Table:
    schema = evaluation.schema
    answered = answer_table(answers, schema.to_json(), None)
    columns: list[tuple[pyarrow.Field, Any]] = [
        (pyarrow.field("file", pyarrow.string()), _taken(evaluation.files, rows)),
        (pyarrow.field("row", pyarrow.int64()), _taken(evaluation.rows, rows)),
        (pyarrow.field("split", pyarrow.string()), _taken(evaluation.splits, rows)),
        (pyarrow.field("text", pyarrow.string()), _taken(evaluation.texts, rows)),
    ]
    full = {f"{head.name}_scores": head for head in schema if head.kind != HeadKind.REGRESSION}
    # The scores of all labels take the place of those of the answered labels.
    columns += [(field, answered[field.name]) for field in answered.schema if field.name not in full]
    for head in schema.rejecting_heads:
        rejected = [answer.get("rejected", {}).get(head.name) for answer in answers]
        columns.append((pyarrow.field(f"{head.name}_rejected", pyarrow.bool_()), rejected))
    for head in schema:
        given = evaluation.labels[rows, schema.label_columns[head.name]]
        unseen = evaluation.unseen.get(head.name, {})
        true = [_true_answer(head, labels, unseen.get(int(row), ())) for row, labels in zip(rows, given, strict=True)]
        columns.append((pyarrow.field(f"{head.name}_true", _TRUE_TYPES[head.kind]), true))
    for name, head in full.items():
        field = pyarrow.field(name, pyarrow.list_(pyarrow.float32()))
        names = json.dumps(head.labels, ensure_ascii=False).encode()
        found = scores.get(head.name)
        columns.append((field.with_metadata({LABELS: names}), [None] * len(rows) if found is None else list(found)))
    arrays = [
        values if isinstance(values, pyarrow.ChunkedArray) else pyarrow.array(values, field.type)
        for field, values in columns
    ]
    return pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema([field for field, _ in columns]))


def _taken(values: Any, rows: NDArray[np.int64]) -> list[Any] | None:
    """The values of these rows; nulls if the evaluation has none."""
    if not len(values):
        return [None] * len(rows)
    return [value.item() if isinstance(value, np.generic) else value for value in (values[int(row)] for row in rows)]


def _true_answer(head: Head, row: NDArray[np.float32], unseen: Sequence[str]) -> str | list[str] | float | None:
    if np.isnan(row).any():
        return None
    match head.kind:
        case HeadKind.SINGLE_LABEL:
            return next(iter(unseen), None) if row[0] < 0 else head.labels[int(row[0])]
        case HeadKind.MULTI_LABEL:
            return [*(label for label, is_true in zip(head.labels, row, strict=True) if is_true), *unseen]
        case HeadKind.REGRESSION:
            return float(row[0])


def write_suspects(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Writes a row per suspect of all evaluations, the most certain first, with its place, split and text."""
    columns: dict[str, list[object]] = {name: [] for name in _SUSPECTS.names}
    pairs = [(suspect, evaluation) for evaluation in evaluations for suspect in evaluation.suspects]
    for suspect, evaluation in sorted(pairs, key=lambda pair: -pair[0].score):
        index = suspect.index
        has_place = len(evaluation.files) > 0
        row = (
            suspect.head,
            suspect.given,
            suspect.proposed,
            suspect.score,
            evaluation.files[index] if has_place else None,
            int(evaluation.rows[index]) if has_place else None,
            evaluation.splits[index] if has_place else None,
            evaluation.texts[index],
        )
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
    with open_output(path, _SUSPECTS) as output:
        output.write(pyarrow.table(columns, schema=_SUSPECTS))
