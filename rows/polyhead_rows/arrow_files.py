"""Parquet and Arrow files (both Arrow formats, file and stream). They have types; a row's number is its position."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pyarrow
from pyarrow import ipc
from pyarrow.parquet import ParquetFile as Parquet

from polyhead_rows.byte_source import BUFFER_BYTES, READ_ERRORS, ByteSource, reading
from polyhead_rows.errors import TableError
from polyhead_rows.place import file_system, is_uri
from polyhead_rows.table import Row, Start, TableFile, column_of

BATCH_ROWS, BATCH_BYTES = 1024, 16 * 2**20  # in memory at a time, whichever is less


class ArrowTableFile(TableFile):
    """Base class of both: rows and batches from a stream of record batches."""

    _sizes: list[int]  # rows of each piece that can be skipped: row groups, record batches

    def __init__(self, source: ByteSource, compression: str | None) -> None:
        super().__init__(source.name)
        self._path = _whole_file(self, source, compression)

    def _describe(self, schema: pyarrow.Schema) -> None:
        self.arrow_schema = schema
        self.total = sum(self._sizes)
        self.set_columns(schema.names)

    def _skip(self, first_row: int) -> tuple[int, int]:
        """The number of the first row behind the pieces that end before `first_row`, and how many these are."""
        first = 1
        for skipped, rows in enumerate(self._sizes):
            if first + rows > first_row:
                return first, skipped
            first += rows
        return first, len(self._sizes)

    def _open(self) -> Any:
        if is_uri(self._path):
            files, path = file_system(self._path)
            return files.open_input_file(path)
        return pyarrow.OSFile(self._path)

    def _read(self, first_row: int, columns: list[str] | None) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Batches and the numbers of their first rows. It begins with the batch that holds `first_row`, or before."""
        raise NotImplementedError

    def _from(self, first_row: int, columns: Sequence[str] | None) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Rows from `first_row` on in the columns that are wanted, and the number of the first of each batch."""
        names = self.columns if self.doubled else None
        if columns is not None:
            found = [column_of(name, self.columns or ()) for name in columns]
            names = [name for name in dict.fromkeys(found) if name is not None]
        for first, batch in self._read(first_row, names):
            skipped = max(first_row - first, 0)
            if skipped < batch.num_rows:
                yield first + skipped, (batch if names is None else batch.select(names)).slice(skipped)

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Generator[Row]:
        """All rows from `start` on; with `columns`, only these are read."""
        with reading(self.name, self.format):
            for first, batch in self._from((start or Start()).number, columns):
                for at in range(0, batch.num_rows, BATCH_ROWS):
                    yield from _rows_of(batch.slice(at, BATCH_ROWS), first + at)

    def batches(self, first_row: int, rows: int, columns: Sequence[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Rows with their Arrow types; `first_row` counts from 1."""
        with reading(self.name, self.format):
            for first, batch in self._from(first_row, columns):
                if (wanted := first_row + rows - first) <= 0:
                    return
                yield batch.slice(0, wanted)


class ParquetFile(ArrowTableFile):
    """A Parquet file. Row groups before the first wanted row are not read."""

    format = "parquet"
    can_seek = True

    def __init__(self, source: ByteSource, compression: str | None) -> None:
        super().__init__(source, compression)
        with reading(self.name, "Parquet"), self._open() as file, Parquet(file) as parquet:
            groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
            self._sizes = [group.num_rows for group in groups]
            row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)
            self._batch_rows = min(max(BATCH_BYTES // max(row_bytes, 1), 1), BATCH_ROWS)
            self._describe(parquet.schema_arrow)

    def _read(self, first_row: int, columns: list[str] | None) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        first, skipped = self._skip(first_row)
        groups = list(range(skipped, len(self._sizes)))
        # With buffers no column of a large row group is in memory as a whole. Far stores are read in large pieces.
        far = is_uri(self._path)
        with self._open() as file, Parquet(file, pre_buffer=far, buffer_size=0 if far else BUFFER_BYTES) as parquet:
            for batch in parquet.iter_batches(self._batch_rows, row_groups=groups, columns=columns):
                yield first, batch
                first += batch.num_rows


class ArrowFile(ArrowTableFile):
    """An Arrow file (also called Feather 2) or an Arrow stream."""

    format = "arrow"

    def __init__(self, source: ByteSource, compression: str | None) -> None:
        super().__init__(source, compression)
        with reading(self.name, "Arrow"), self._open() as file:
            self.can_seek = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = ipc.open_file(file) if self.can_seek else ipc.open_stream(file)
            self._sizes = [batch.num_rows for batch in _batches(reader)]
            self._describe(reader.schema)
            if not self.can_seek and file.read(1):
                raise TableError(f"{self.name}: has more than one Arrow stream; write each to a file of its own")

    def _read(self, first_row: int, columns: list[str] | None) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        first, skipped = self._skip(first_row) if self.can_seek else (1, 0)
        with self._open() as file:
            for batch in _batches(ipc.open_file(file) if self.can_seek else ipc.open_stream(file), skipped):
                yield first, batch
                first += batch.num_rows


def python_values(column: pyarrow.Array) -> list[Any]:
    """Plain Python values; times that Python does not have, such as nanoseconds, are text."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        values = column.cast(pyarrow.string()).to_pylist()
    return values


def _batches(reader: Any, skipped: int = 0) -> Iterator[pyarrow.RecordBatch]:
    if isinstance(reader, ipc.RecordBatchFileReader):
        batches = map(reader.get_batch, range(skipped, reader.num_record_batches))
    else:
        batches = iter(reader)
    for batch in batches:
        batch.validate()  # a damaged file must not lead outside its buffers
        yield batch


def _whole_file(owner: object, source: ByteSource, compression: str | None) -> str:
    """A path that can be sought: the file's own, or of a copy that lives as long as its owner."""
    if compression is None and not source.once:
        return source.name
    handle, path = tempfile.mkstemp(prefix="polyhead-rows-")
    weakref.finalize(owner, os.unlink, path)
    with reading(source.name, compression), os.fdopen(handle, "wb") as copy, source.open_undecoded() as stream:
        shutil.copyfileobj(stream, copy)
    return path


def _rows_of(batch: pyarrow.RecordBatch, number: int) -> Iterator[Row]:
    try:
        records = batch.to_pylist()
    except (*READ_ERRORS, OverflowError):
        for at in range(batch.num_rows):
            fields, reason = _record(batch, at)
            yield Row(number + at, None, fields, reason, number + at)
        return
    for at, fields in enumerate(records, start=number):
        yield Row(at, None, fields, None, at)


def _record(batch: pyarrow.RecordBatch, at: int) -> tuple[dict[str, Any] | None, str | None]:
    """A row that has a value with no Python form: text that is not UTF-8, or a time beyond Python's."""
    fields = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[at].as_py()
        except UnicodeDecodeError as error:
            return None, f"column {name!r} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
        except (*READ_ERRORS, OverflowError):
            fields[name] = python_values(column.slice(at, 1))[0]
    return fields, None
