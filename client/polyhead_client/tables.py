"""Predictions as a table of pandas or Arrow: a row a text, the columns of each head side by side.

A head gives ``HEAD_label`` and ``HEAD_score`` (single_label: the best one), ``HEAD_labels`` and ``HEAD_scores``
(multi_label: lists), or ``HEAD_value`` (regression); then come ``token_count``, ``truncated`` and ``error``.
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
    "multi_label": {"labels": "list<string>", "scores": "list<float64>"},
    "regression": {"value": "float64"},
}
REST = {"token_count": "int64", "truncated": "bool", "error": "string"}


def to_arrow(predictions: Sequence[Prediction], schema: Schema | None = None) -> Any:
    """A ``pyarrow.Table``.

    Args:
        predictions: of one model.
        schema: `Client.schema`'s, so that the columns are there also where no text has an answer; without it the heads
            are those that occur.

    Raises:
        UsageError: pyarrow is not installed.
    """
    pyarrow = _import("pyarrow")
    plain = {name: pyarrow.type_for_alias(name) for name in ("string", "float64", "int64", "bool")}
    lists = {f"list<{name}>": pyarrow.list_(kind) for name, kind in plain.items()}
    kinds = _kinds(predictions, schema)
    values = _values(predictions, kinds)
    return pyarrow.table(
        {name: pyarrow.array(values[name], (plain | lists)[kind]) for name, kind in _types(kinds).items()}
    )


def to_pandas(predictions: Sequence[Prediction], schema: Schema | None = None) -> Any:
    """A ``pandas.DataFrame``; see `to_arrow`.

    Raises:
        UsageError: pandas is not installed.
    """
    pandas = _import("pandas")
    kinds = _kinds(predictions, schema)
    values = _values(predictions, kinds)
    frame = {
        name: pandas.Series(values[name], dtype="object" if kind.startswith("list") or kind == "string" else kind)
        for name, kind in _types(kinds).items()
    }
    return pandas.DataFrame(frame)


def _kinds(predictions: Sequence[Prediction], schema: Schema | None) -> dict[str, str]:
    if schema is not None:
        return {head.name: head.kind for head in schema.heads}
    return {name: KIND_OF[type(head)] for prediction in predictions for name, head in prediction.heads.items()}


def _types(kinds: dict[str, str]) -> dict[str, str]:
    heads = {f"{head}_{name}": kind for head, of in kinds.items() for name, kind in COLUMNS_OF[of].items()}
    if taken := sorted(heads.keys() & REST.keys()):
        raise UsageError(f"a head's column is named {taken[0]!r}, as the table's own is; rename the head")
    return heads | REST


def _values(predictions: Sequence[Prediction], kinds: dict[str, str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in _types(kinds)}
    for prediction in predictions:
        row: dict[str, Any] = {
            f"{head}_{name}": value for head in kinds for name, value in _cells(prediction.heads.get(head)).items()
        }
        row |= {"token_count": prediction.token_count, "truncated": prediction.truncated, "error": prediction.error}
        for name, column in columns.items():
            column.append(row.get(name))
    return columns


def _cells(head: HeadPrediction | None) -> dict[str, Any]:
    match head:
        case SingleLabel():
            return {"label": head.label, "score": head.score}
        case MultiLabel(labels):
            return {"labels": list(head.names), "scores": [one.score for one in labels]}
        case Regression(value):
            return {"value": value}
        case None:
            return {}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: pip install {name}") from error
