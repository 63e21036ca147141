"""Types for the columns of JSON rows, which may differ from row to row, so that they fit into one Arrow table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow

Kinds = dict[str, set[str]]  # of each column, the kinds of its values

EXACT = 2**53  # whole numbers up to here are exact as float64


def note_kinds(kinds: Kinds, row: Mapping[str, Any]) -> None:
    """Adds the kinds of a row's values to the known kinds of the columns."""
    for name, value in row.items():
        known = kinds.setdefault(name, set())
        if value is not None:
            known.add(_kind(value))


def merge_kinds(all_kinds: Iterable[Kinds]) -> pyarrow.Schema:
    """The columns of several files in order of appearance, each with a type that holds all its values.

    Mixed and nested values become text: strings unchanged, all others as JSON.
    """
    merged: Kinds = {}
    for kinds in all_kinds:
        for name, found in kinds.items():
            merged.setdefault(name, set()).update(found)
    return pyarrow.schema([(name, _arrow_type(found)) for name, found in merged.items()])


def to_table(rows: Sequence[Mapping[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    """The columns that `schema` names, null if a row lacks one."""
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pyarrow.types.is_string(field.type):
            values = [None if value is None else _as_text(value) for value in values]
        columns.append(pyarrow.array(values, field.type))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "int" if abs(value) <= EXACT else "long" if -(2**63) <= value < 2**63 else "json"
        case float():
            return "float"
        case str():
            return "string"
        case _:
            return "json"


def _arrow_type(kinds: set[str]) -> pyarrow.DataType:
    if kinds == {"bool"}:
        return pyarrow.bool_()
    if kinds and kinds <= {"int", "long"}:
        return pyarrow.int64()
    if kinds and kinds <= {"int", "float"}:
        return pyarrow.float64()
    return pyarrow.string()


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # Arrow has no lone surrogates: \udc80 stands for one
