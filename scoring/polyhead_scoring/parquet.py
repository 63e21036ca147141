"""Parquet: rows are ranges of row groups, read in batches so that a large row group need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow
import pyarrow.compute
from pyarrow.parquet import ParquetFile

from polyhead_scoring.errors import InputError
from polyhead_scoring.partition import Limits, Partition, RowSize, cut
from polyhead_scoring.place import Place
from polyhead_scoring.rows import Rows

ROWS_A_BATCH = 8192


def survey(file: str, text_column: str, limits: Limits) -> tuple[list[Partition], pyarrow.Schema]:
    """Partitions of a file, and its columns."""
    with _open(file) as opened:
        schema = _schema(file, opened, text_column)
        partitions = list(cut(file, _sizes(opened, text_column), limits))
    return partitions, schema


def schema_of(surveyed: list[pyarrow.Schema]) -> pyarrow.Schema:
    """The columns of all files, which must agree."""
    first = surveyed[0]
    for schema in surveyed[1:]:
        if schema != first:
            differing = sorted({field.name for field in set(first) ^ set(schema)}) or "the order of columns"
            raise InputError(f"the input files do not agree in their columns; these differ: {differing}")
    return first


def sample(file: str, text_column: str, rows: int) -> list[str | bytes]:
    """Texts of the first rows."""
    with _open(file) as opened:
        _schema(file, opened, text_column)
        for batch in opened.iter_batches(rows, columns=[text_column]):
            return [text for text in _binary(batch.column(0)).to_pylist() if text is not None]
    return []


def read(partition: Partition, text_column: str, kept: pyarrow.Schema) -> Rows:
    """The rows of a partition."""
    columns = list(dict.fromkeys([text_column, *kept.names]))
    with _open(partition.file) as opened:
        first, groups = _groups(opened, partition)
        batches, place = [], first
        for batch in opened.iter_batches(ROWS_A_BATCH, row_groups=groups, columns=columns):
            start = max(partition.first_row - place, 0)
            stop = min(partition.first_row + partition.rows - place, batch.num_rows)
            if stop > start:
                batches.append(batch.slice(start, stop - start))
            place += batch.num_rows
            if place >= partition.first_row + partition.rows:
                break
        table = pyarrow.Table.from_batches(batches)
    texts = [text for chunk in table.column(text_column).chunks for text in _binary(chunk).to_pylist()]
    return Rows(texts, pyarrow.table([table.column(name) for name in kept.names], schema=kept))


def _open(file: str) -> ParquetFile:
    place = Place.of(file)
    try:
        return ParquetFile(place.files.open_input_file(place.path))
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: cannot be read as Parquet ({error})") from error


def _schema(file: str, opened: ParquetFile, text_column: str) -> pyarrow.Schema:
    schema = opened.schema_arrow.remove_metadata()
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise InputError(f"{file}: two columns are called {twice[0]!r}")
    if text_column in schema.names:
        found = schema.field(text_column).type
        value = found.value_type if pyarrow.types.is_dictionary(found) else found
        if not _is_text(value):
            raise InputError(f"{file}: column {text_column!r} must hold text, it is {found}")
    return schema


def _is_text(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
        or types.is_null(kind)
    )  # fmt: skip


def _sizes(opened: ParquetFile, text_column: str) -> Iterator[RowSize]:
    if text_column not in opened.schema_arrow.names:
        return  # the run stops at a column that no file has
    for group in range(opened.num_row_groups):
        about = opened.metadata.row_group(group)
        mean = about.total_byte_size // max(about.num_rows, 1)
        for batch in opened.iter_batches(65536, row_groups=[group], columns=[text_column]):
            for length in pyarrow.compute.binary_length(_binary(batch.column(0))).to_pylist():
                yield RowSize(length or 0, 0, max(mean, length or 0))


def _groups(opened: ParquetFile, partition: Partition) -> tuple[int, list[int]]:
    """The row groups that hold the partition, and the place of their first row."""
    groups: list[int] = []
    first = place = 0
    for group in range(opened.num_row_groups):
        rows = opened.metadata.row_group(group).num_rows
        if place < partition.first_row + partition.rows and place + rows > partition.first_row:
            if not groups:
                first = place
            groups.append(group)
        place += rows
    return first, groups


def _binary(column: pyarrow.Array) -> pyarrow.Array:
    """Texts as bytes: a string column of a broken writer may hold what is not UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary())
