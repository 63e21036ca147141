"""The one layout of answers in tables: the same columns in files, in data frames and in an evaluation's predictions.

A head gives ``HEAD_label`` and ``HEAD_score`` (single_label: the best label, null if it is rejected, and its score;
with ``top_k`` above 1 also the lists ``HEAD_labels`` and ``HEAD_scores``, best first), the lists ``HEAD_labels`` and
``HEAD_scores`` (multi_label), or ``HEAD_value`` (regression). Then come ``token_count``, ``truncated`` and ``error``.
Scores and values are float32, as the engine computes them. If a row has an error, its other columns are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow

from polyhead_rows.errors import TableError

ROW_FIELDS = [
    pyarrow.field("token_count", pyarrow.int32()),
    pyarrow.field("truncated", pyarrow.bool_()),
    pyarrow.field("error", pyarrow.string()),
]
_BEST = {"label": pyarrow.string(), "score": pyarrow.float32()}
_LISTS = {"labels": pyarrow.list_(pyarrow.string()), "scores": pyarrow.list_(pyarrow.float32())}


def answer_fields(heads: Sequence[Mapping[str, Any]], top_k: int | None, prefix: str = "") -> list[pyarrow.Field]:
    """The columns of the answers.

    Args:
        heads: as in the wire contract's schema; of each, ``name`` and ``kind`` are used.
        top_k: as it was asked for.
        prefix: stands before each name.

    Raises:
        TableError: two columns have one name.
    """
    fields = [
        pyarrow.field(f"{prefix}{head['name']}_{part}", kind)
        for head in heads
        for part, kind in _parts(head["kind"], top_k).items()
    ]
    fields += [field.with_name(prefix + field.name) for field in ROW_FIELDS]
    names = [field.name for field in fields]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise TableError(f"two columns of the answers are named {doubled[0]!r}; rename a head")
    return fields


def answer_table(
    answers: Sequence[Mapping[str, Any]], heads: Sequence[Mapping[str, Any]], top_k: int | None, prefix: str = ""
) -> pyarrow.Table:
    """One row per answer.

    Args:
        answers: as in the wire contract: ``heads``, ``token_count`` and ``truncated``, or ``error``.
        heads: see `answer_fields`.
        top_k: as it was asked for.
        prefix: stands before each name.
    """
    schema = pyarrow.schema(answer_fields(heads, top_k, prefix))
    columns = [
        [_cell((answer.get("heads") or {}).get(head["name"]), part) for answer in answers]
        for head in heads
        for part in _parts(head["kind"], top_k)
    ]
    columns += [[answer.get(field.name) for answer in answers] for field in ROW_FIELDS]
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _parts(kind: str, top_k: int | None) -> dict[str, pyarrow.DataType]:
    match kind:
        case "single_label":
            return _BEST | _LISTS if (top_k or 1) > 1 else _BEST
        case "multi_label":
            return _LISTS
        case "regression":
            return {"value": pyarrow.float32()}
        case _:
            raise TableError(f"a head's kind must be single_label, multi_label or regression, got {kind!r}")


def _cell(head: Mapping[str, Any] | None, part: str) -> Any:
    if head is None:
        return None
    if part in ("label", "score"):
        return head.get(part, head[part + "s"][0])  # a head that may reject has a label, which may be None
    return head[part]
