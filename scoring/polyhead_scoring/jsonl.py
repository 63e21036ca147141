"""JSONL: an object a line. A line that is none is a row with an error; blank lines are no rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow

from polyhead_scoring.partition import Limits, Partition, RowSize, cut
from polyhead_scoring.place import Place
from polyhead_scoring.rows import BadRow, Kinds, Rows, merge_kinds, note_kinds, to_table

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def survey(file: str, text_column: str, limits: Limits) -> tuple[list[Partition], Kinds]:
    """Partitions of a file, and what its columns hold."""
    kinds: Kinds = {}

    def sizes() -> Iterator[RowSize]:
        place, end = Place.of(file), 0
        with place.files.open_input_stream(place.path) as stream:
            for line in io.BufferedReader(stream, 1 << 20):
                start, end = end, end + len(line)
                row = _row(line)
                if row is None:
                    continue
                text = None
                if isinstance(row, dict):
                    note_kinds(kinds, row)
                    text = row.get(text_column)
                yield RowSize(len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0, start, end)

    return list(cut(file, sizes(), limits)), kinds


def schema_of(surveyed: list[Kinds]) -> pyarrow.Schema:
    """The columns of all files."""
    return merge_kinds(surveyed)


def sample(file: str, text_column: str, rows: int) -> list[str | bytes]:
    """Texts of the first rows."""
    place, texts = Place.of(file), []
    with place.files.open_input_stream(place.path) as stream:
        for line in io.BufferedReader(stream, 1 << 20):
            row = _row(line)
            if isinstance(row, dict) and isinstance(row.get(text_column), str):
                texts.append(row[text_column])
            if len(texts) == rows:
                break
    return texts


def read(partition: Partition, text_column: str, kept: pyarrow.Schema) -> Rows:
    """The rows of a partition."""
    place = Place.of(partition.file)
    with place.files.open_input_file(place.path) as file:
        file.seek(partition.start)
        content = file.read(partition.size)
    found = [row for line in content.split(b"\n") if (row := _row(line)) is not None]
    objects = [{} if isinstance(row, BadRow) else row for row in found]
    return Rows([row if isinstance(row, BadRow) else row.get(text_column) for row in found], to_table(objects, kept))


def _row(line: bytes) -> dict[str, Any] | BadRow | None:
    """The object of a line; None for a blank one. Bytes that are not UTF-8 become lone surrogates."""
    text = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    if not text or text.isspace():
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"the line is not JSON ({error})")
    return row if isinstance(row, dict) else BadRow(f"the line must be an object, got {type(row).__name__}")
