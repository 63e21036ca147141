"""Texts that are given as fields: objects such as ``{"Title": …, "Review Text": …}``, or the rows of a table.

They are sent as JSON objects. The server makes the text of them, with the model's template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from numbers import Integral, Real
from typing import Any

from polyhead_client.errors import UsageError

TABLE_SLICE = 4096  # rows of a table that become Python objects at a time


def is_table(texts: Any) -> bool:
    """Whether it is a table of pandas, Arrow or Polars; none of them need be installed."""
    return hasattr(texts, "columns") and any(hasattr(texts, name) for name in ("to_dict", "to_dicts", "to_pylist"))


def table_rows(table: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table as objects of these fields; other columns are not read.

    Raises:
        UsageError: a column is missing, or the model declares no fields.
    """
    columns = list(getattr(table, "column_names", table.columns))
    if not names:
        raise UsageError(
            f"texts: the model declares no fields, so it takes no table (got {type(table).__name__} with columns "
            f"{columns}); give one column of texts, such as table['text']"
        )
    if missing := [name for name in names if name not in columns]:
        raise UsageError(f"texts: the table lacks columns {missing}; the model's fields are {list(names)}")
    table = table.select(list(names)) if hasattr(table, "select") else table[list(names)]
    for start in range(0, len(table), TABLE_SLICE):
        if hasattr(table, "to_pylist"):  # Arrow
            yield from table.slice(start, TABLE_SLICE).to_pylist()
        elif hasattr(table, "to_dicts"):  # Polars
            yield from table.slice(start, TABLE_SLICE).to_dicts()
        else:
            yield from table.iloc[start : start + TABLE_SLICE].to_dict("records")


def fields_json(row: Mapping[Any, Any], position: int, names: Sequence[str]) -> str:
    """The JSON object of one text; a missing value becomes null.

    Raises:
        UsageError: the model does not declare these fields, or a value is neither text nor number.
    """
    if not names:
        raise UsageError(f"text {position} has fields, but the model declares none: it takes plain texts only")
    if unknown := [name for name in row if name not in names]:
        raise UsageError(f"text {position} has unknown field {unknown[0]!r}; the model's fields are {list(names)}")
    if not row:
        raise UsageError(f"text {position} has no fields; the model's fields are {list(names)}")
    return json.dumps({str(name): _value(value, name, position) for name, value in row.items()}, ensure_ascii=False)


def _value(value: Any, name: str, position: int) -> str | int | float | bool | None:
    if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0 and hasattr(value, "item"):
        value = value.item()  # a NumPy scalar
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        if math.isnan(number):
            return None
        if math.isfinite(number):
            return number
    if isinstance(value, date):
        return str(value)
    raise UsageError(f"text {position}: field {name!r} must be a text, a finite number or None, got {value!r:.60}")
