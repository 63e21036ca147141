"""Arrow types for rows of JSON, which may have other fields and types each."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from polyhead_client.bulk.sources import Block
from polyhead_client.errors import UsageError, one_line
from polyhead_client.tables import import_library

AS_JSON = {b"polyhead": b"json"}  # metadata of a field whose values have no common type


def columns_of(blocks: Iterable[Block], left_out: Collection[str] = ()) -> list[str]:
    """All fields that occur, in the order in which they do."""
    names: dict[str, None] = {}
    for block in blocks:
        for row in block.rows:
            names.update(dict.fromkeys(row.fields or ()))
    return [name for name in names if name not in left_out]


def infer_schema(blocks: Iterable[Block], left_out: Collection[str] = ()) -> Any:
    """A ``pyarrow.Schema`` in which all rows fit; a field whose values have no common type becomes JSON text."""
    pyarrow = import_library("pyarrow")
    kinds: dict[str, Any] = {}  # None: no common type
    for block in blocks:
        rows = [row.fields for row in block.rows if row.fields is not None and row.reason is None]
        for name in dict.fromkeys(name for row in rows for name in row if name not in left_out):
            try:
                kind = pyarrow.array([row.get(name) for row in rows]).type
                known = kinds.get(name, kind)
                two = [pyarrow.schema([(name, one)]) for one in (kind if known is None else known, kind)]
                common = pyarrow.unify_schemas(two, promote_options="permissive").field(name).type
                kinds[name] = None if known is None else common
            except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
                kinds[name] = None
    fields = []
    for name, kind in kinds.items():
        plain = kind is not None and not pyarrow.types.is_null(kind)
        metadata = AS_JSON if kind is None else None
        fields.append(pyarrow.field(name, kind if plain else pyarrow.string(), metadata=metadata))
    return pyarrow.schema(fields)


def to_table(rows: list[dict[str, Any]], schema: Any) -> Any:
    """Rows as a table of the schema.

    Raises:
        UsageError: a value does not fit.
    """
    pyarrow = import_library("pyarrow")
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.metadata == AS_JSON:
            values = [None if value is None else json.dumps(value) for value in values]
        try:
            arrays.append(pyarrow.array(values, field.type))
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise UsageError(
                f"field {field.name!r} does not fit Parquet's {field.type} ({one_line(str(error))}); write .jsonl"
            ) from error
    return pyarrow.table(arrays, schema=schema)
