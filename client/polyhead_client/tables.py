"""Predictions as a table of pandas or Arrow: a row a text, the columns of each head side by side.

A head gives ``HEAD_label`` and ``HEAD_score`` (single_label: the best one), ``HEAD_labels`` and ``HEAD_scores``
(multi_label, and the best few of a single_label head with ``top_k``: lists), or ``HEAD_value`` (regression); then come
``token_count``, ``truncated`` and ``error``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from polyhead_client.errors import UsageError
from polyhead_client.prediction import HeadPrediction, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.schema import Schema

KIND_OF = {SingleLabel: "single_label", MultiLabel: "multi_label", Regression: "regression"}
COLUMNS_OF = {
    "single_label": {"label": "string", "score": "float64"},
    "ranked": {"label": "string", "score": "float64", "labels": "list<string>", "scores": "list<float64>"},
    "multi_label": {"labels": "list<string>", "scores": "list<float64>"},
    "regression": {"value": "float64"},
}
REST = {"token_count": "int64", "truncated": "bool", "error": "string"}


def to_arrow(predictions: Sequence[Prediction], schema: Schema | None = None, top_k: int | None = None) -> Any:
    """A ``pyarrow.Table``.

    Args:
        predictions: of one model.
        schema: `Client.schema`'s, so that the columns are there also where no text has an answer; without it the heads
            are those that occur.
        top_k: as it was asked for; above 1 single_label heads have lists of their best few as well.

    Raises:
        UsageError: pyarrow is not installed.
    """
    pyarrow = import_library("pyarrow")
    plain = {name: pyarrow.type_for_alias(name) for name in ("string", "float64", "int64", "bool")}
    lists = {f"list<{name}>": pyarrow.list_(kind) for name, kind in plain.items()}
    kinds = _kinds(predictions, schema, top_k)
    values = _values(predictions, kinds)
    return pyarrow.table(
        {name: pyarrow.array(values[name], (plain | lists)[kind]) for name, kind in column_types(kinds).items()}
    )


def to_pandas(predictions: Sequence[Prediction], schema: Schema | None = None, top_k: int | None = None) -> Any:
    """A ``pandas.DataFrame``; see `to_arrow`.

    Raises:
        UsageError: pandas is not installed.
    """
    pandas = import_library("pandas")
    kinds = _kinds(predictions, schema, top_k)
    values = _values(predictions, kinds)
    frame = {
        name: pandas.Series(values[name], dtype="object" if kind.startswith("list") or kind == "string" else kind)
        for name, kind in column_types(kinds).items()
    }
    return pandas.DataFrame(frame)


def head_kinds(schema: Schema, top_k: int | None = None) -> dict[str, str]:
    """For each head, which of COLUMNS_OF it has."""
    return {head.name: _with_top_k(head.kind, top_k) for head in schema.heads}


def column_types(kinds: dict[str, str]) -> dict[str, str]:
    """All columns in their order, with the names of their Arrow types.

    Raises:
        UsageError: a head's column has the name of one of the table's own.
    """
    heads = {f"{head}_{name}": kind for head, of in kinds.items() for name, kind in COLUMNS_OF[of].items()}
    if taken := sorted(heads.keys() & REST.keys()):
        raise UsageError(f"a head's column is named {taken[0]!r}, as the table's own is; rename the head")
    return heads | REST


def cells(prediction: Prediction, kinds: dict[str, str]) -> dict[str, Any]:
    """A row by column name; columns of a head that does not answer are left out."""
    row = {
        f"{head}_{name}": value
        for head, kind in kinds.items()
        for name, value in _head_cells(prediction.heads.get(head), kind).items()
    }
    return row | {
        "token_count": prediction.token_count, "truncated": prediction.truncated, "error": prediction.error
    }  # fmt: skip


def _kinds(predictions: Sequence[Prediction], schema: Schema | None, top_k: int | None) -> dict[str, str]:
    if schema is not None:
        return head_kinds(schema, top_k)
    answered = ((name, head) for prediction in predictions for name, head in prediction.heads.items())
    return {name: _with_top_k(KIND_OF[type(head)], top_k) for name, head in answered}


def _with_top_k(kind: str, top_k: int | None) -> str:
    return "ranked" if kind == "single_label" and (top_k or 1) > 1 else kind


def _values(predictions: Sequence[Prediction], kinds: dict[str, str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in column_types(kinds)}
    for prediction in predictions:
        row = cells(prediction, kinds)
        for name, column in columns.items():
            column.append(row.get(name))
    return columns


def _head_cells(head: HeadPrediction | None, kind: str) -> dict[str, Any]:
    match head:
        case SingleLabel(top):
            best = {"label": head.label, "score": head.score}
            few = {"labels": [one.label for one in top], "scores": [one.score for one in top]}
            return best | few if kind == "ranked" else best
        case MultiLabel(labels):
            return {"labels": list(head.names), "scores": [one.score for one in labels]}
        case Regression(value):
            return {"value": value}
        case None:
            return {}


def import_library(name: str) -> ModuleType:
    """A library that the client does not need itself.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: pip install {name.partition('.')[0]}") from error
