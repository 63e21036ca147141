"""Writes tables: CSV, TSV, JSON lines, a JSON array, Parquet and Arrow; the text formats also compressed.

Writes directly to the named file. Callers that must not leave half a file write to another name and rename it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pyarrow
from pyarrow import ipc, parquet

from polyhead_rows.arrow_files import python_values
from polyhead_rows.byte_source import compressed
from polyhead_rows.errors import TableError
from polyhead_rows.place import file_system, is_uri, known_names, split_name, why

GROUP_ROWS, GROUP_BYTES = 65_536, 64 * 2**20  # the size of a Parquet row group, whichever comes first
CHUNK_ROWS = 1024
QUOTE = '"'
WRITE_ERRORS = (OSError, ValueError, pyarrow.ArrowException)
FLOAT32 = struct.Struct("f")
PLAIN = (str, int, bool, type(None))


class Output:
    """A file that is being written; a context manager. `open_output` makes it."""

    def __init__(self, name: str, schema: pyarrow.Schema, opened: ExitStack) -> None:
        self.name = name
        self.schema = schema
        self._opened = opened

    def write(self, table: pyarrow.Table) -> None:
        """Adds rows; the table has the output's schema.

        Raises:
            TableError: the file cannot be written.
        """
        with _writing(self.name):
            self._write(table.cast(self.schema))

    def close(self) -> None:
        """Ends the file.

        Raises:
            TableError: the file cannot be written.
        """
        with _writing(self.name), self._opened:
            self._finish()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(*WRITE_ERRORS):  # the first error is the one to see
                self._opened.close()

    def _write(self, table: pyarrow.Table) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Writes what is still held."""


def open_output(path: str | Path, schema: pyarrow.Schema) -> Output:
    """A new file in the format that its name says.

    Raises:
        TableError: no known format, or the file cannot be made.
    """
    name = str(path)
    kind, compression = split_name(name)
    if kind is None or kind == "lines":
        raise TableError(f"{name}: the name must end in one of {known_names()}")
    typed = kind in ("parquet", "arrow")
    if typed and compression is not None:
        raise TableError(f"{name}: {kind} files are compressed inside; leave the last ending out")
    with _writing(name), ExitStack() as opened:
        file = opened.enter_context(_create(name))
        if compression is not None:
            file = opened.enter_context(compressed(file, compression, "wb"))
        writer = opened.enter_context(_open_writer(file, schema, kind))
        stack = opened.pop_all()
        return _ArrowOutput(name, schema, stack, writer) if typed else _TextOutput(name, schema, stack, writer, kind)


class _ArrowOutput(Output):
    def __init__(self, name: str, schema: pyarrow.Schema, opened: ExitStack, writer: Any) -> None:
        super().__init__(name, schema, opened)
        self._writer = writer
        self._waiting: list[pyarrow.Table] = []
        self._rows = self._bytes = 0

    def _write(self, table: pyarrow.Table) -> None:
        self._waiting.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._rows:
            self._writer.write_table(pyarrow.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._rows, self._bytes = [], 0, 0


class _TextOutput(Output):
    def __init__(self, name: str, schema: pyarrow.Schema, opened: ExitStack, file: TextIO, kind: str) -> None:
        super().__init__(name, schema, opened)
        self._file = file
        self._kind = kind
        self._before_row = "\n"  # in a JSON array
        if kind in ("csv", "tsv"):
            self._delimiter = "\t" if kind == "tsv" else ","
            # Also what would be a byte order mark. The csv module of Python 3.11 leaves carriage returns unquoted.
            self._to_quote = re.compile(f'[{self._delimiter}"\r\n]|^\ufeff')
            self._write_cells(schema.names)
        elif kind == "json":
            self._file.write("[")

    def _write(self, table: pyarrow.Table) -> None:
        write_row = self._write_cells if self._kind in ("csv", "tsv") else self._write_object
        for batch in table.to_batches(CHUNK_ROWS):
            for values in zip(*map(_plain_values, batch.columns), strict=True):
                write_row(values)

    def _write_cells(self, values: Iterable[Any]) -> None:
        cells = [_csv_cell(value) for value in values]
        if self._to_quote.search("".join(cells)):
            cells = [f'"{cell.replace(QUOTE, 2 * QUOTE)}"' if self._to_quote.search(cell) else cell for cell in cells]
        self._file.write((self._delimiter.join(cells) or 2 * QUOTE) + "\n")  # an empty line would be no row

    def _write_object(self, values: Iterable[Any]) -> None:
        row = json.dumps(dict(zip(self.schema.names, map(_json_value, values), strict=True)), ensure_ascii=False)
        if self._kind == "jsonl":
            self._file.write(row + "\n")
        else:
            self._file.write(self._before_row + row)
            self._before_row = ",\n"

    def _finish(self) -> None:
        if self._kind == "json":
            self._file.write("\n]\n")


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except WRITE_ERRORS as error:
        raise TableError(f"{name}: cannot be written ({why(error)})") from error


def _create(name: str) -> Any:
    if is_uri(name):
        files, path = file_system(name)
        return files.open_output_stream(path, compression=None)  # by default pyarrow would choose it by the name
    return Path(name).open("wb")


def _open_writer(file: Any, schema: pyarrow.Schema, kind: str) -> Any:
    match kind:
        case "parquet":
            return parquet.ParquetWriter(file, schema)
        case "arrow":
            return ipc.new_file(file, schema)
        case _:
            return io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")


def _plain_values(column: pyarrow.Array) -> list[Any]:
    values = python_values(column)
    if pyarrow.types.is_float32(column.type):
        return [value if value is None else _shortest(value) for value in values]
    if pyarrow.types.is_list(column.type) and pyarrow.types.is_float32(column.type.value_type):
        return [some and [one if one is None else _shortest(one) for one in some] for some in values]
    return values


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 0.9 and not 0.8999999761581421."""
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if FLOAT32.pack(short) == FLOAT32.pack(value):
            return short
    return float(f"{value:.9g}")


def _json_value(value: Any) -> Any:
    """JSON has no form for dates and decimals (written as text), bytes (base64) and non-finite numbers (null)."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _json_value(one) for key, one in value.items()}
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _csv_cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return json.dumps(_json_value(value), ensure_ascii=False)
    value = _json_value(value)
    return "" if value is None else str(value)
