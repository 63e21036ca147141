"""Inputs: CSV, JSON lines, Parquet and plain lines as rows, read again from the start as often as needed.

What is wrong with a row is that row's reason; only an input that cannot be read as a whole is an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from polyhead_client.bulk.lines import LONGEST_LINE, Lines, LongLineError
from polyhead_client.bulk.row import Row, read_row
from polyhead_client.errors import UsageError, one_line
from polyhead_client.tables import import_library

BLOCK_ROWS = 1024
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that follow one another, with the Arrow table that they are, where the input is Parquet."""

    rows: list[Row]
    table: Any = None


class Source(Protocol):
    """An input.

    Attributes:
        columns: in their order; None where each row has its own.
        total: how far there is to read; bytes, or rows of Parquet.
    """

    columns: list[str] | None
    total: int

    def rows(self) -> Iterator[Row]:
        """All rows; of Parquet the text alone."""

    def blocks(self) -> Iterator[Block]:
        """All rows with all their columns."""


def format_of(path: Path) -> str:
    """The format that a file's name says.

    Raises:
        UsageError: none that is known.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def open_source(path: Path, text_column: str) -> Source:
    """The input at a path.

    Raises:
        UsageError: it is not there, is no such file, or lacks the column.
    """
    kind = format_of(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    opened: dict[str, Callable[[Path, str], Source]] = {
        "csv": CsvSource, "jsonl": JsonlSource, "parquet": ParquetSource
    }  # fmt: skip
    return opened[kind](path, text_column)


class JsonlSource:
    """One JSON object a line; blank lines are no rows."""

    def __init__(self, path: Path, text_column: str) -> None:
        self.columns: list[str] | None = None
        self.total = path.stat().st_size
        self._path = path
        self._text_column = text_column

    def rows(self) -> Iterator[Row]:
        """All rows."""
        with self._path.open("rb") as file:
            lines = Lines(file)
            number = 0
            while True:
                try:
                    line = next(lines)
                except StopIteration:
                    return
                except LongLineError as error:
                    number += 1
                    yield Row(number, lines.number, None, str(error), None, lines.offset)
                    continue
                if line.strip():
                    number += 1
                    yield self._row(line, number, lines)

    def blocks(self) -> Iterator[Block]:
        """The same, some at a time."""
        return _blocks(self.rows())

    def _row(self, line: bytes, number: int, lines: Lines) -> Row:
        try:
            fields = json.loads(line.decode("utf-8"), parse_constant=_refuse)
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte 0x{line[error.start]:02x} at {error.start}"
        except (ValueError, RecursionError) as error:
            reason = f"not JSON: {one_line(str(error))}"
        else:
            if not isinstance(fields, dict):
                reason = f"must be a JSON object, got {type(fields).__name__}"
            elif self._text_column not in fields:
                return Row(number, lines.number, None, f"no field {self._text_column!r}", fields, lines.offset)
            else:
                return read_row(number, lines.number, fields[self._text_column], fields, lines.offset)
        return Row(number, lines.number, None, reason, None, lines.offset)


class CsvSource:
    """CSV as of RFC 4180 with a header; strictly, so that a stray quote is a reason and not a guess."""

    def __init__(self, path: Path, text_column: str) -> None:
        self.total = path.stat().st_size
        self._path = path
        self._text_column = text_column
        csv.field_size_limit(LONGEST_LINE)  # of the process; a quote that is never closed ends there
        with path.open("rb") as file:
            try:
                header = next(csv.reader((line.decode("utf-8") for line in Lines(file)), strict=True), [])
            except (ValueError, csv.Error) as error:
                raise UsageError(f"{path}: the header cannot be read: {error}") from error
        if len(set(header)) < len(header):
            raise UsageError(f"{path}: the header names a column twice: {header}")
        _check_column(path, text_column, header)
        self.columns: list[str] | None = header
        self._header = header

    def rows(self) -> Iterator[Row]:
        """All rows."""
        with self._path.open("rb") as file:
            lines = Lines(file)
            # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own row only.
            reader = csv.reader(map(_decode, lines), strict=True)
            next(reader)
            number = 0
            while True:
                first = lines.number + 1
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except (csv.Error, LongLineError) as error:
                    number += 1
                    until = f"; the row reaches to line {lines.number}" if lines.number > first else ""
                    yield Row(number, first, None, f"not CSV: {error}{until}", None, lines.offset)
                    continue
                if values:  # a blank line is no row
                    number += 1
                    yield self._row(values, number, first, lines.offset)

    def blocks(self) -> Iterator[Block]:
        """The same, some at a time."""
        return _blocks(self.rows())

    def _row(self, values: list[str], number: int, line: int, end: int) -> Row:
        if len(values) != len(self._header):
            reason = f"{len(values)} fields, where the header has {len(self._header)}"
            return Row(number, line, None, reason, {"fields": [_shown(value) for value in values]}, end)
        fields: dict[str, Any] = dict(zip(self._header, values, strict=True))
        for name, value in fields.items():
            if not value.isascii() and (byte := _stray_byte(value)) is not None:
                shown = {key: _shown(one) for key, one in fields.items()}
                return Row(number, line, None, f"column {name!r} is not UTF-8: byte 0x{byte:02x}", shown, end)
        return read_row(number, line, fields[self._text_column], fields, end)


class ParquetSource:
    """A Parquet file whose text column holds strings."""

    def __init__(self, path: Path, text_column: str) -> None:
        self._parquet = import_library("pyarrow.parquet")
        self._arrow = import_library("pyarrow")
        self._path = path
        self._text_column = text_column
        try:
            with self._parquet.ParquetFile(path) as file:
                self.schema = file.schema_arrow
                self.total: int = file.metadata.num_rows
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: not a Parquet file: {one_line(str(error))}") from error
        _check_column(path, text_column, self.schema.names)
        self.columns: list[str] | None = self.schema.names
        kind = self.schema.field(text_column).type
        plain = kind.value_type if self._arrow.types.is_dictionary(kind) else kind
        if str(plain) not in ("string", "large_string", "string_view", "null"):
            raise UsageError(f"{path}: column {text_column!r} holds {kind}, not strings")

    def rows(self) -> Iterator[Row]:
        """All rows, of which the text column alone is read."""
        for block in self._read([self._text_column]):
            yield from block.rows

    def blocks(self) -> Iterator[Block]:
        """All rows with their tables."""
        return self._read(None)

    def _read(self, columns: list[str] | None) -> Iterator[Block]:
        number = 0
        with self._parquet.ParquetFile(self._path) as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=columns):
                rows = []
                for text in _texts(batch.column(self._text_column)):
                    number += 1
                    if isinstance(text, bytes):
                        rows.append(Row(number, None, None, "the text is not UTF-8", None, number))
                    else:
                        rows.append(read_row(number, None, text, None, number))
                yield Block(rows, self._arrow.Table.from_batches([batch]))


class LinesSource:
    """Plain lines, each a text, of a stream that is read once; blank lines stay, so that answers line up with them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def rows(self) -> Iterator[Row]:
        """All lines."""
        lines = Lines(self._file)
        while True:
            try:
                line = next(lines)
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                byte = line[error.start]
                reason = f"line {lines.number} is not UTF-8: it has byte 0x{byte:02x}"
                yield Row(lines.number, lines.number, None, reason, {"text": _shown(_decode(line))}, lines.offset)
            except LongLineError as error:
                yield Row(lines.number, lines.number, None, str(error), {"text": ""}, lines.offset)
            else:
                yield read_row(lines.number, lines.number, text, {"text": text}, lines.offset)


def _blocks(rows: Iterator[Row]) -> Iterator[Block]:
    while some := list(islice(rows, BLOCK_ROWS)):
        yield Block(some)


def _check_column(path: Path, text_column: str, columns: list[str]) -> None:
    if text_column not in columns:
        raise UsageError(f"{path}: no column {text_column!r}; name one of {columns} with --text-column")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _decode(line: bytes) -> str:
    return line.decode("utf-8", errors="surrogateescape")


def _shown(value: str) -> str:
    return value.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace").rstrip("\r\n")


def _stray_byte(value: str) -> int | None:
    return next((ord(character) - 0xDC00 for character in value if "\udc80" <= character <= "\udcff"), None)


def _texts(column: Any) -> list[Any]:
    try:
        texts: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_text(value) for value in column]
    return texts


def _text(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return b""
