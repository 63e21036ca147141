"""Outputs: the input's columns and the answers' beside them, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from polyhead_client.bulk.arrow_types import columns_of, infer_schema, to_table
from polyhead_client.bulk.sources import Block, ParquetSource, Source
from polyhead_client.errors import UsageError
from polyhead_client.prediction import Prediction
from polyhead_client.schema import Schema
from polyhead_client.tables import cells, column_types, head_kinds, import_library, to_arrow

GROUP_ROWS, GROUP_BYTES = 65_536, 64 * 2**20  # of a row group of Parquet, whichever comes first


class AnswerColumns:
    """The columns that are added: those of `polyhead_client.tables` but the error, which has a file of its own."""

    def __init__(self, schema: Schema, top_k: int | None, prefix: str) -> None:
        self.schema = schema
        self.top_k = top_k
        self._kinds = head_kinds(schema, top_k)
        self._plain = [name for name in column_types(self._kinds) if name != "error"]
        self.names = [prefix + name for name in self._plain]

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """A row."""
        row = cells(prediction, self._kinds)
        return {name: row.get(plain) for name, plain in zip(self.names, self._plain, strict=True)}

    def table(self, predictions: Sequence[Prediction]) -> Any:
        """An Arrow table."""
        return to_arrow(predictions, self.schema, self.top_k).select(self._plain).rename_columns(self.names)

    def check(self, columns: Sequence[str]) -> None:
        """Refuses an input that has one of them.

        Raises:
            UsageError: it has.
        """
        if taken := [name for name in self.names if name in columns]:
            raise UsageError(f"the input already has a column {taken[0]!r}; give the new ones another --prefix")


class Output(Protocol):
    """A file that is being written."""

    def write(self, block: Block, kept: list[tuple[int, Prediction]]) -> None:
        """Rows of the block, by their place in it, and their answers."""

    def close(self) -> None:
        """No row follows."""


def open_output(path: Path, kind: str, source: Source, columns: AnswerColumns) -> Output:
    """A new file of the format."""
    opened: dict[str, Callable[[Path, Source, AnswerColumns], Output]] = {
        "csv": CsvOutput, "jsonl": JsonlOutput, "parquet": ParquetOutput
    }  # fmt: skip
    return opened[kind](path, source, columns)


class JsonlOutput:
    """One JSON object a line."""

    def __init__(self, path: Path, source: Source, columns: AnswerColumns) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._columns = columns

    def write(self, block: Block, kept: list[tuple[int, Prediction]]) -> None:
        """Rows of the block and their answers."""
        for fields, (_, prediction) in zip(records(block, kept), kept, strict=True):
            row = fields | self._columns.cells(prediction)
            # ASCII: a field of the input may hold lone surrogates.
            self._file.write(json.dumps(row, default=plain) + "\n")

    def close(self) -> None:
        """No row follows."""
        self._file.close()


class CsvOutput:
    """A header and quoted fields; what is missing is empty, lists are JSON."""

    def __init__(self, path: Path, source: Source, columns: AnswerColumns) -> None:
        names = source.columns if source.columns is not None else columns_of(source.blocks(), columns.names)
        self._columns = columns
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._writer = csv.DictWriter(self._file, [*names, *columns.names], lineterminator="\n")
        self._writer.writeheader()

    def write(self, block: Block, kept: list[tuple[int, Prediction]]) -> None:
        """Rows of the block and their answers."""
        for fields, (_, prediction) in zip(records(block, kept), kept, strict=True):
            row = fields | self._columns.cells(prediction)
            self._writer.writerow({name: _csv_cell(value) for name, value in row.items()})

    def close(self) -> None:
        """No row follows."""
        self._file.close()


class ParquetOutput:
    """Input columns keep the types that they have in Parquet; those of CSV are strings, those of JSON are inferred."""

    def __init__(self, path: Path, source: Source, columns: AnswerColumns) -> None:
        pyarrow = import_library("pyarrow")
        parquet = import_library("pyarrow.parquet")
        self._columns = columns
        if isinstance(source, ParquetSource):
            self._schema = source.schema
        elif source.columns is not None:
            self._schema = pyarrow.schema([(name, pyarrow.string()) for name in source.columns])
        else:
            self._schema = infer_schema(source.blocks(), columns.names)
        both = [*self._schema, *columns.table([]).schema]
        self._whole = pyarrow.schema(both, self._schema.metadata)
        self._writer = parquet.ParquetWriter(path, self._whole)
        self._concat = pyarrow.concat_tables
        self._waiting: list[Any] = []  # tables of the next row group

    def write(self, block: Block, kept: list[tuple[int, Prediction]]) -> None:
        """Rows of the block and their answers."""
        if not kept:
            return
        table = (
            to_table([block.rows[place].fields or {} for place, _ in kept], self._schema)
            if block.table is None
            else block.table.take([place for place, _ in kept])
        )
        for column in (answers := self._columns.table([prediction for _, prediction in kept])).schema.names:
            table = table.append_column(column, answers.column(column))
        self._waiting.append(table.cast(self._whole))
        rows, size = (sum(getattr(one, name) for one in self._waiting) for name in ("num_rows", "nbytes"))
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """No row follows."""
        self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        if self._waiting:
            self._writer.write_table(self._concat(self._waiting))
            self._waiting = []


def records(block: Block, kept: list[tuple[int, Prediction]]) -> list[dict[str, Any]]:
    """The rows' fields as Python objects."""
    if block.table is None:
        return [dict(block.rows[place].fields or {}) for place, _ in kept]
    rows: list[dict[str, Any]] = block.table.take([place for place, _ in kept]).to_pylist() if kept else []
    return rows


def plain(value: object) -> str:
    """What JSON has no form for: dates and decimals as they are written, bytes in base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _csv_cell(value: object) -> object:
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=plain)
    return plain(value) if isinstance(value, bytes) else value
