"""Rows as they stand in files or in a data set of the hub, read one at a time so that no file must fit into memory.

A row is a dict of plain Python values. Whatever the format, class labels come by their names, and text stays text.
"""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from polyhead.errors import one_line
from polyhead_training.errors import DataError

Row = dict[str, Any]

ROWS_A_BATCH = 256  # held in memory at a time


@dataclass(frozen=True)
class Table:
    """One file, or one split of a hub data set.

    Attributes:
        name: for messages.
        rows: can be read once.
        sparse: whether a row may lack a column that others have.
    """

    name: str
    rows: Iterator[Row]
    sparse: bool = False


def open_files(patterns: str | list[str]) -> Iterator[Table]:
    """The files of one path, glob or list of them, all of one kind; each is opened when its rows are read.

    Raises:
        DataError: a pattern matches nothing, or kinds are mixed or unknown; while rows are read, what is
            wrong in a file.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    paths = list(dict.fromkeys(path for pattern in patterns for path in _expand(pattern)))
    kinds = {Path(path).suffix.lower() for path in paths}
    if len(kinds) != 1 or not kinds <= set(FORMATS):
        raise DataError(f"{', '.join(paths) or patterns}: files of one kind are needed, one of {', '.join(FORMATS)}")
    kind = kinds.pop()
    return (
        Table(path, _naming(FORMATS[kind](path), f"{path}: cannot be read as {kind[1:]}"), sparse=kind == ".jsonl")
        for path in paths
    )


def open_hub(name: str, config: str | None) -> dict[str, Table]:
    """The splits train, validation and test, as far as the data set has them, streamed."""
    place = f"hub data set {name!r}: cannot be loaded"
    try:
        # Without network only what is in the hub's cache can be read, and streams do not look there.
        loaded = datasets.load_dataset(name, config, streaming=not datasets.config.HF_HUB_OFFLINE)
    except Exception as error:  # the library raises many kinds, each with a cause worth showing
        raise DataError(f"{place} ({one_line(error)})") from error
    if "train" not in loaded:
        raise DataError(f"hub data set {name!r}: has no split 'train', only {sorted(loaded)}")
    splits = [split for split in ("train", "validation", "test") if split in loaded]
    return {split: Table(f"{name}[{split}]", _naming(_read_hub(loaded[split]), place)) for split in splits}


def as_text(value: Any) -> str | None:
    """A cell as text, None where it is missing: the same number or truth value reads alike in every format.

    Missing is also NaN, which data frames have. Bytes that are not UTF-8 become lone surrogates.
    """
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return None
        case float() if value.is_integer():
            return str(int(value))
        case bytes():
            return value.decode("utf-8", "surrogateescape")
        case _:
            return str(value)


def write_rows(path: Path, rows: Iterable[Row], schema: pyarrow.Schema) -> datasets.Dataset:
    """Writes rows to an Arrow file as they come, and maps it into memory.

    Raises:
        DataError: there is no room for it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with pyarrow.ipc.new_stream(str(part), schema) as writer:
            batch: list[Row] = []
            for row in rows:
                batch.append(row)
                if len(batch) == ROWS_A_BATCH:
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
                    batch.clear()
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
        os.replace(part, path)  # what is mapped from an older file of this name stays as it was
    except OSError as error:
        raise DataError(f"{path.parent}: rows cannot be written ({error}); TMPDIR names another folder") from error
    return datasets.Dataset.from_file(str(path))


def _expand(pattern: str) -> list[str]:
    if Path(pattern).exists():
        paths = [pattern]
    else:
        paths = sorted(path for path in glob.glob(pattern, recursive=True) if not Path(path).is_dir())
    if not paths:
        raise DataError(f"{pattern}: no such file; paths are relative to {Path.cwd()}")
    for path in paths:
        if not os.access(path, os.R_OK) or Path(path).is_dir():
            raise DataError(f"{path}: is not a readable file")
    return paths


def _naming(rows: Iterator[Row], place: str) -> Iterator[Row]:
    try:
        yield from rows
    except DataError:
        raise
    except Exception as error:  # each library raises kinds of its own
        raise DataError(f"{place} ({one_line(error)})") from error


def _read_csv(path: str) -> Iterator[Row]:
    """Cells are text, as they stand: "NA" is a label, and digits keep their zeros."""
    csv.field_size_limit(sys.maxsize)  # texts may be longer than the module's 128 KiB
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, None)
        if not header:
            raise DataError(f"{path}: cannot be read as csv (its first line must name the columns)")
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path}: cannot be read as csv (two columns are called {twice[0]!r})")
        for number, cells in enumerate(filter(None, lines), start=1):  # blank lines are no rows
            if len(cells) != len(header):
                raise DataError(f"{path}: row {number}: has {len(cells)} fields, the header names {len(header)}")
            yield dict(zip(header, cells, strict=True))


def _read_jsonl(path: str) -> Iterator[Row]:
    with Path(path).open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: must be an object, got {type(row).__name__}")
            yield row


def _read_parquet(path: str) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
        yield from _rows_of(file.iter_batches(ROWS_A_BATCH), file.schema_arrow)


def _read_arrow(path: str) -> Iterator[Row]:
    """Of Arrow's two formats, the file (also called Feather 2) and the stream (which `datasets` writes)."""
    with pyarrow.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            yield from _rows_of((file.get_batch(i) for i in range(file.num_record_batches)), file.schema)
        else:
            source.seek(0)
            stream = pyarrow.ipc.open_stream(source)
            yield from _rows_of(stream, stream.schema)


def _read_hub(split: Any) -> Iterator[Row]:
    if split.features is None:  # a stream whose card does not list them: found in its first rows
        split = split._resolve_features()
    name_labels = _label_namer(split.features)
    return (name_labels(row) for row in split)


FORMATS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}


def _rows_of(batches: Iterable[pyarrow.RecordBatch], schema: pyarrow.Schema) -> Iterator[Row]:
    by_datasets = b"huggingface" in (schema.metadata or {})  # others' files may hold types that it does not know
    name_labels = _label_namer(datasets.Features.from_arrow_schema(schema) if by_datasets else datasets.Features())
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_A_BATCH):
            for row in batch.slice(start, ROWS_A_BATCH).to_pylist():
                yield name_labels(row)


def _label_namer(features: datasets.Features) -> Callable[[Row], Row]:
    """A function that puts names in place of class indices, also in lists; an index below 0 is no label."""

    def name(feature: datasets.ClassLabel, index: int | None) -> str | None:
        return None if index is None or index < 0 else feature.int2str(index)

    single = {key: feature for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    several = {
        key: feature.feature
        for key, feature in features.items()
        if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel)
    }

    def name_labels(row: Row) -> Row:
        for key, feature in single.items():
            row[key] = name(feature, row[key])
        for key, feature in several.items():
            row[key] = None if row[key] is None else [name(feature, index) for index in row[key]]
        return row

    return name_labels
