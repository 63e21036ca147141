"""CSV with a header: cells are text, as they stand. A row with too few or too many cells is a row with an error."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow

from polyhead_scoring.errors import InputError
from polyhead_scoring.jsonl import BYTE_ORDER_MARK
from polyhead_scoring.partition import Limits, Partition, RowSize, cut
from polyhead_scoring.place import Place
from polyhead_scoring.rows import BadRow, Kinds, Rows, merge_kinds, to_table

csv.field_size_limit(sys.maxsize)  # texts may be longer than the module's 128 KiB


def survey(file: str, text_column: str, limits: Limits) -> tuple[list[Partition], Kinds]:
    """Partitions of a file, and its columns."""
    header = _header(file)

    def sizes() -> Iterator[RowSize]:
        for row, start, end in _records(file):
            text = row.get(text_column) if isinstance(row, dict) else None
            yield RowSize(len(text.encode("utf-8", "replace")) if text else 0, start, end)

    return list(cut(file, sizes(), limits)), {name: {"string"} for name in header}


def schema_of(surveyed: list[Kinds]) -> pyarrow.Schema:
    """The columns of all files."""
    return merge_kinds(surveyed)


def sample(file: str, text_column: str, rows: int) -> list[str | bytes]:
    """Texts of the first rows."""
    texts: list[str | bytes] = []
    for row, _, _ in _records(file):
        if isinstance(row, dict) and text_column in row:
            texts.append(row[text_column])
        if len(texts) == rows:
            break
    return texts


def read(partition: Partition, text_column: str, kept: pyarrow.Schema) -> Rows:
    """The rows of a partition."""
    header, place = _header(partition.file), Place.of(partition.file)
    with place.files.open_input_file(place.path) as file:
        file.seek(partition.start)
        content = file.read(partition.size).decode("utf-8", "surrogateescape")
    found = [_row(header, cells) for cells in csv.reader(io.StringIO(content, newline=""), strict=True) if cells]
    objects: list[dict[str, Any]] = [{} if isinstance(row, BadRow) else row for row in found]
    return Rows([row if isinstance(row, BadRow) else row.get(text_column) for row in found], to_table(objects, kept))


class _Lines:
    """Lines of a stream as text, and how many bytes have been handed out."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream = stream
        self.offset = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            if not self.offset:
                self.offset = len(line)
                yield line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
            else:
                self.offset += len(line)
                yield line.decode("utf-8", "surrogateescape")


def _records(file: str) -> Iterator[tuple[dict[str, str] | BadRow, int, int]]:
    """Each row after the header, and the bytes at which it begins and ends; blank lines are no rows."""
    header: list[str] | None = None
    for cells, start, end in _cells(file):
        if header is None:
            header = cells
        else:
            yield _row(header, cells), start, end


def _cells(file: str) -> Iterator[tuple[list[str], int, int]]:
    place = Place.of(file)
    with place.files.open_input_stream(place.path) as stream:
        lines = _Lines(io.BufferedReader(stream, 1 << 20))
        start = 0
        number = -1
        try:
            for cells in csv.reader(lines, strict=True):
                number += 1
                if cells:
                    yield cells, start, lines.offset
                start = lines.offset
        except csv.Error as error:
            raise InputError(f"{file}: cannot be read as CSV behind row {number} ({error})") from error


def _header(file: str) -> list[str]:
    first = next(_cells(file), None)
    if first is None:
        raise InputError(f"{file}: is empty; the first line of a CSV file must name the columns")
    header = first[0]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{file}: two columns are called {twice[0]!r}")
    return header


def _row(header: list[str], cells: list[str]) -> dict[str, str] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"the row has {len(cells)} cells, the header names {len(header)}")
    return dict(zip(header, cells, strict=True))
