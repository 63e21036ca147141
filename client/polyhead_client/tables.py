"""Predictions as a pandas or Arrow table: one row per text, and for each head its columns.

A head has ``HEAD_label`` and ``HEAD_score`` (single_label: the best label), ``HEAD_labels`` and ``HEAD_scores`` (lists:
multi_label, and the best labels of a single_label head with ``top_k``), or ``HEAD_value`` (regression). After the heads
come ``token_count``, ``truncated`` and ``error``. Files that `polyhead-score` writes have the same columns and types.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from polyhead_client.errors import UsageError
from polyhead_client.prediction import HeadPrediction, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.schema import HeadKind, ModelSchema

KIND_OF = {
    SingleLabel: HeadKind.SINGLE_LABEL,
    MultiLabel: HeadKind.MULTI_LABEL,
    Regression: HeadKind.REGRESSION,
}
BEST = {"label": "string", "score": "float32"}
LISTS = {"labels": "list<string>", "scores": "list<float32>"}
VALUE = {"value": "float32"}
REST = {"token_count": "int32", "truncated": "bool", "error": "string"}


def to_arrow(predictions: Sequence[Prediction], schema: ModelSchema | None = None, top_k: int | None = None) -> Any:
    """A ``pyarrow.Table``.

    Args:
        predictions: all from one model.
        schema: from `Client.schema`. With it the table has the columns of all heads, also if no text has an answer.
            Without it the table has the heads that occur in the predictions.
        top_k: the same as for `Client.classify`; above 1 single_label heads also have lists of their best labels.

    Raises:
        UsageError: pyarrow is not installed.
    """
    pyarrow = _import("pyarrow")
    types, values = _columns(predictions, schema, top_k)
    plain = {name: pyarrow.type_for_alias(name) for name in ("string", "float32", "int32", "bool")}
    lists = {f"list<{name}>": pyarrow.list_(kind) for name, kind in plain.items()}
    return pyarrow.table({name: pyarrow.array(values[name], (plain | lists)[kind]) for name, kind in types.items()})


def to_pandas(predictions: Sequence[Prediction], schema: ModelSchema | None = None, top_k: int | None = None) -> Any:
    """A ``pandas.DataFrame``; the arguments are those of `to_arrow`.

    Raises:
        UsageError: pandas is not installed.
    """
    pandas = _import("pandas")
    types, values = _columns(predictions, schema, top_k)
    frame = {
        name: pandas.Series(values[name], dtype="object" if kind.startswith("list") or kind == "string" else kind)
        for name, kind in types.items()
    }
    return pandas.DataFrame(frame)


def _columns(
    predictions: Sequence[Prediction], schema: ModelSchema | None, top_k: int | None
) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """The type and the values of each column, in the table's order."""
    if schema is not None:
        kinds = {head.name: head.kind for head in schema.heads}
    else:
        kinds = {name: KIND_OF[type(head)] for one in predictions for name, head in one.heads.items()}
    ranked = (top_k or 1) > 1
    types: dict[str, str] = {}
    for head, kind in kinds.items():
        types |= {f"{head}_{name}": of for name, of in _head_types(kind, ranked).items()}
    types |= REST
    rows = [_row(prediction) for prediction in predictions]
    return types, {name: [row.get(name) for row in rows] for name in types}


def _head_types(kind: HeadKind, ranked: bool) -> dict[str, str]:
    match kind:
        case HeadKind.SINGLE_LABEL:
            return BEST | LISTS if ranked else BEST
        case HeadKind.MULTI_LABEL:
            return LISTS
        case HeadKind.REGRESSION:
            return VALUE


def _row(prediction: Prediction) -> dict[str, Any]:
    """All values that a prediction has for the columns; the table may need fewer."""
    row: dict[str, Any] = {
        f"{name}_{column}": value for name, head in prediction.heads.items() for column, value in _cells(head).items()
    }
    rest = {"token_count": prediction.token_count, "truncated": prediction.truncated, "error": prediction.error}
    return row | rest


def _cells(head: HeadPrediction) -> dict[str, Any]:
    match head:
        case SingleLabel(top):
            lists = {"labels": [one.label for one in top], "scores": [one.score for one in top]}
            return {"label": head.label, "score": head.score} | lists
        case MultiLabel(labels):
            return {"labels": list(head.names), "scores": [one.score for one in labels]}
        case Regression(value):
            return {"value": value}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: pip install {name}") from error
