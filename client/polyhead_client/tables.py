"""Predictions as a pandas or Arrow table: one row per text, and for each head its columns.

A head has ``HEAD_label`` and ``HEAD_score`` (single_label: the best label, null if it is rejected, and its score),
``HEAD_labels`` and ``HEAD_scores`` (lists: multi_label, and the best labels of a single_label head with ``top_k``), or
``HEAD_value`` (regression). After the heads come ``token_count``, ``truncated`` and ``error``. If a row has an error,
its other columns are null. Files that `polyhead-score` writes have the same columns, types and nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyhead_client.prediction import Prediction
from polyhead_client.request import import_extra
from polyhead_client.schema import HeadKind, ModelSchema

BEST = {"label": "string", "score": "float32"}
LISTS = {"labels": "list<string>", "scores": "list<float32>"}
VALUE = {"value": "float32"}
REST = {"token_count": "int32", "truncated": "bool", "error": "string"}
# Lists and texts are objects. pandas' own int32 and bool have no null.
PANDAS_TYPES = {"float32": "float32", "int32": "Int32", "bool": "boolean"}


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
    pyarrow = import_extra("pyarrow", "pyarrow")
    types = {name: pyarrow.type_for_alias(name) for name in ("string", "float32", "int32", "bool")}
    types |= {f"list<{name}>": pyarrow.list_(kind) for name, kind in types.items()}
    columns = answer_columns(predictions, schema, top_k)
    return pyarrow.table({name: pyarrow.array(values, types[kind]) for name, (kind, values) in columns.items()})


def to_pandas(predictions: Sequence[Prediction], schema: ModelSchema | None = None, top_k: int | None = None) -> Any:
    """A ``pandas.DataFrame``; the arguments are those of `to_arrow`. Nulls are ``NA``, ``NaN`` or None.

    Raises:
        UsageError: pandas is not installed.
    """
    pandas = import_extra("pandas", "pandas")
    columns = answer_columns(predictions, schema, top_k)
    return pandas.DataFrame(
        {
            name: pandas.Series(values, dtype=PANDAS_TYPES.get(kind, "object"))
            for name, (kind, values) in columns.items()
        }
    )


def answer_columns(
    predictions: Sequence[Prediction], schema: ModelSchema | None, top_k: int | None
) -> dict[str, tuple[str, list[Any]]]:
    """The type and the values of each column, in the table's order."""
    answers = [prediction.to_json() for prediction in predictions]
    heads = [answer.get("heads", {}) for answer in answers]
    if schema is not None:
        kinds = {head.name: head.kind for head in schema.heads}
    else:
        kinds = {name: HeadKind(head["kind"]) for answered in heads for name, head in answered.items()}
    columns = {
        f"{name}_{part}": (type_, [_cell(answered.get(name), part) for answered in heads])
        for name, kind in kinds.items()
        for part, type_ in _parts(kind, top_k).items()
    }
    return columns | {name: (type_, [answer.get(name) for answer in answers]) for name, type_ in REST.items()}


def _parts(kind: HeadKind, top_k: int | None) -> dict[str, str]:
    match kind:
        case HeadKind.SINGLE_LABEL:
            return BEST | LISTS if (top_k or 1) > 1 else BEST
        case HeadKind.MULTI_LABEL:
            return LISTS
        case HeadKind.REGRESSION:
            return VALUE


def _cell(head: dict[str, Any] | None, part: str) -> Any:
    if head is None:
        return None
    if part in BEST:
        return head.get(part, head[f"{part}s"][0])  # a head that may reject has a label, which may be None
    return head[part]
