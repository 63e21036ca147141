"""Answers as columns: a struct a head, and ``token_count``, ``truncated`` and ``error`` a row.

``single_label``: ``{label, score}``, or with `top_k` ``{labels, scores}``, best first. ``multi_label``:
``{labels, scores}``. ``regression``: ``{value}``. Scores and values are float32, as the engine has them. In a row with
an ``error`` all others are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow

from polyhead.decode import DecodeOptions
from polyhead.schema import Head, Schema
from polyhead_scoring.errors import OutputError

ROW_COLUMNS = [
    pyarrow.field("token_count", pyarrow.int32()),
    pyarrow.field("truncated", pyarrow.bool_()),
    pyarrow.field("error", pyarrow.string()),
]


def output_schema(kept: pyarrow.Schema, schema: Schema, options: DecodeOptions, prefix: str) -> pyarrow.Schema:
    """All columns of the output: the kept ones, the heads', the row's.

    Raises:
        OutputError: two columns would have one name.
    """
    fields = [*kept, *(pyarrow.field(prefix + head.name, _type(head, options)) for head in schema), *ROW_COLUMNS]
    names = [field.name for field in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OutputError(
            f"column {twice[0]!r} is in the input and among the answers; leave it out by naming all others with "
            "--keep, or choose another --prefix for the heads"
        )
    return pyarrow.schema(fields)


def output_table(
    kept: pyarrow.Table, answers: Sequence[dict[str, Any]], output: pyarrow.Schema, schema: Schema, prefix: str
) -> pyarrow.Table:
    """Rows with their answers, as `Predictor.decode` gives them."""
    columns: dict[str, Any] = dict(zip(kept.column_names, kept.columns, strict=True))
    for head in schema:
        kind = output.field(prefix + head.name).type
        cells = [_cell(answer["heads"][head.name], kind) if "heads" in answer else None for answer in answers]
        columns[prefix + head.name] = pyarrow.array(cells, kind)
    for field in ROW_COLUMNS:
        columns[field.name] = pyarrow.array([answer.get(field.name) for answer in answers], field.type)
    return pyarrow.table([columns[name] for name in output.names], schema=output)


def _type(head: Head, options: DecodeOptions) -> pyarrow.DataType:
    text, number = pyarrow.string(), pyarrow.float32()
    if head.kind == "regression":
        return pyarrow.struct([("value", number)])
    if head.kind == "single_label" and options.top_k is None:
        return pyarrow.struct([("label", text), ("score", number)])
    return pyarrow.struct([("labels", pyarrow.list_(text)), ("scores", pyarrow.list_(number))])


def _cell(answer: dict[str, Any], kind: pyarrow.StructType) -> dict[str, Any]:
    if kind.get_field_index("label") >= 0:
        return {"label": answer["labels"][0], "score": answer["scores"][0]}
    return {field.name: answer[field.name] for field in kind}
