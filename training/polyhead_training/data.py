"""Rows of text and labels: read from files or a hub data set, checked against the heads, turned into label matrices."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
from numpy.typing import NDArray
from pydantic import ValidationError

from polyhead.encode import UnreadableTextError, read_text
from polyhead.errors import SchemaError, describe, one_line
from polyhead.schema import Head, Schema
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.errors import DataError

VALIDATION_TENTH = 1  # of sha256(text) % 10


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        rows: columns ``text`` and ``labels``: a class index, a number, or 0/1 a label; NaN where unknown.
        dropped: how many rows had a blank or unreadable text.
    """

    rows: datasets.Dataset
    dropped: int = 0

    @property
    def texts(self) -> Sequence[str]:
        """None blank."""
        return self.rows["text"][:]

    @property
    def labels(self) -> NDArray[np.float32]:
        """float32 ``(n, sum of label widths)``."""
        return np.array(self.rows["labels"][:], dtype=np.float32).reshape(len(self), -1)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Corpus:
    """All splits and the schema that their labels follow; `test` may be None."""

    schema: Schema
    train: Split
    validation: Split
    test: Split | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rows:
    source: str
    texts: list[Any]
    columns: dict[str, list[Any]]
    places: list[str]  # of each row, for messages


_Table = dict[str, list[Any]]


def read_corpus(config: DataConfig, heads: Sequence[HeadConfig], scratch: Path | None = None, seed: int = 0) -> Corpus:
    """Reads all splits; the schema's labels are those given or, sorted, those of the training rows.

    Raises:
        DataError: a file, column, row or label is not as the config says; names it and what is allowed.
        SchemaError: the heads contradict themselves.
    """
    wanted = {head.name: head.column or head.name for head in heads}
    if config.hub is not None:
        rows = _read_hub(config, wanted)
    else:
        files = {"train": config.train, "validation": config.validation, "test": config.test}
        rows = {
            split: _read_files(paths, config.text_column, wanted) for split, paths in files.items() if paths is not None
        }
    if "validation" not in rows:
        rows["train"], rows["validation"] = _hold_out(rows["train"])
    schema = Schema([_to_head(head, rows["train"]) for head in heads])
    splits = {name: _to_split(part, schema, heads) for name, part in rows.items()}
    for name, split in splits.items():
        if not len(split):
            raise DataError(f"{rows[name].source}: the {name} split has no row with a text")
    return Corpus(schema, splits["train"], splits["validation"], splits.get("test"))


def read_split(
    paths: str | list[str],
    config: DataConfig,
    heads: Sequence[HeadConfig],
    schema: Schema,
    scratch: Path,
    metadata: Sequence[str] = (),
) -> Split:
    """Texts alone."""
    rows = _read_files(paths, config.text_column, {})
    blank = [None] * len(rows.texts)
    return _to_split(_Rows(rows.source, rows.texts, {head.name: blank for head in heads}, rows.places), schema, heads)


def describe_corpus(corpus: Corpus) -> list[str]:
    """Rows of each split and labels of each head, a line each."""
    lines = []
    for name, split in (("train", corpus.train), ("validation", corpus.validation), ("test", corpus.test)):
        if split is not None:
            dropped = f", {split.dropped} dropped since their text is blank" if split.dropped else ""
            lines.append(f"{name}: {len(split)} rows{dropped}")
    for head in corpus.schema:
        lines.append(f"head {head.name}: {head.kind}" + (f", {len(head.labels)} labels" if head.labels else ""))
    return lines


def _read_hub(config: DataConfig, wanted: dict[str, str]) -> dict[str, _Rows]:
    try:
        loaded = datasets.load_dataset(config.hub)
    except Exception as error:  # the library raises many kinds, each with a cause worth showing
        raise DataError(f"hub data set {config.hub!r}: cannot be loaded ({one_line(error)})") from error
    if "train" not in loaded:
        raise DataError(f"hub data set {config.hub!r}: has no split 'train', only {sorted(loaded)}")
    splits = [split for split in ("train", "validation", "test") if split in loaded]
    return {
        split: _take(_read_features(loaded[split]), f"{config.hub}[{split}]", config.text_column, wanted)
        for split in splits
    }


def _read_files(patterns: str | list[str], text_column: str, wanted: dict[str, str]) -> _Rows:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    paths = [path for pattern in patterns for path in _expand(pattern)]
    kinds = {Path(path).suffix.lower() for path in paths}
    if len(kinds) != 1 or not kinds <= set(FORMATS):
        raise DataError(f"{', '.join(paths)}: files of one kind are needed, one of {', '.join(FORMATS)}")
    read = FORMATS[kinds.pop()]
    parts = []
    for path in paths:
        try:
            parts.append(_take(read(path), path, text_column, wanted))
        except DataError:
            raise
        except Exception as error:  # as above
            raise DataError(f"{path}: cannot be read as {Path(path).suffix[1:]} ({one_line(error)})") from error
    columns = {name: [value for part in parts for value in part.columns[name]] for name in wanted}
    places = [place for part in parts for place in part.places]
    return _Rows(", ".join(patterns), [text for part in parts for text in part.texts], columns, places)


def _read_csv(path: str) -> _Table:
    # Text stays text: type inference would make NA of the label "NA", and numbers of digits. And a row with more
    # fields than the header is an error, where pandas would take its first field for an index.
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    return {str(name): frame[name].tolist() for name in frame.columns}


def _read_jsonl(path: str) -> _Table:
    rows = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: must be an object, got {type(row).__name__}")
            rows.append(row)
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


def _read_parquet(path: str) -> _Table:
    return _read_features(datasets.Dataset.from_parquet(path, keep_in_memory=True))


def _read_features(dataset: datasets.Dataset) -> _Table:
    """All columns; those of class labels by name."""
    table = {}
    for name, feature in dataset.features.items():
        table[name] = dataset[name][:]
        if isinstance(feature, datasets.ClassLabel):
            table[name] = [None if value is None or value < 0 else feature.int2str(value) for value in table[name]]
    return table


FORMATS: dict[str, Callable[[str], _Table]] = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _expand(pattern: str) -> list[str]:
    paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(f"{pattern}: no such file; paths are relative to {Path.cwd()}")
    for path in paths:
        if not os.access(path, os.R_OK) or Path(path).is_dir():
            raise DataError(f"{path}: is not a readable file")
    return paths


def _take(table: _Table, source: str, text_column: str, wanted: dict[str, str]) -> _Rows:
    for column in (text_column, *wanted.values()):
        if column not in table:
            raise DataError(f"{source}: has no column {column!r}, only {', '.join(table)}")
    columns = {head: table[column] for head, column in wanted.items()}
    places = [f"{source}: row {row}" for row in range(1, len(table[text_column]) + 1)]
    return _Rows(source, table[text_column], columns, places)


def _hold_out(rows: _Rows) -> tuple[_Rows, _Rows]:
    """A tenth by a hash of the text: stable as data grows, and equal texts never stand on both sides."""
    held = [
        int(hashlib.sha256(str(text).encode("utf-8", "replace")).hexdigest(), 16) % 10 == VALIDATION_TENTH
        for text in rows.texts
    ]

    def part(side: bool) -> _Rows:
        keep = [i for i, is_held in enumerate(held) if is_held is side]
        columns = {name: [values[i] for i in keep] for name, values in rows.columns.items()}
        return _Rows(rows.source, [rows.texts[i] for i in keep], columns, [rows.places[i] for i in keep])

    return part(False), part(True)


def _to_head(config: HeadConfig, train: _Rows) -> Head:
    labels = config.labels
    if labels is None:
        cells = zip(train.columns[config.name], train.places, strict=True)
        labels = sorted({label for value, place in cells for label in _labels_in(value, config, _place(place, config))})
        if not labels and config.kind != "regression":
            raise DataError(
                f"{train.source}: column {config.column or config.name!r} holds no label for head {config.name!r}"
            )
    try:
        return Head(
            name=config.name,
            kind=config.kind,
            labels=tuple(labels),
            weight=config.weight,
            parent=config.parent,
            parent_of=config.parent_of,
        )
    except ValidationError as error:
        raise SchemaError(f"heads: {config.name!r}: {describe(error)}") from error


def _labels_in(value: Any, config: HeadConfig, place: str) -> list[str]:
    """The labels in one cell: none where it is empty, at most one for a single_label head."""
    if config.kind == "regression" or value is None or value == "":
        return []
    if config.kind == "single_label":
        return [_label(value, place)]
    if isinstance(value, str):
        value = _split_cell(value, config.separator)
    if not isinstance(value, list):
        raise DataError(f"{place}: a multi_label head needs a list of labels or a text, got {value!r}")
    return [_label(tag, place) for tag in value if tag is not None]


def _split_cell(cell: str, separator: str) -> Any:
    """Labels of a text cell: a JSON list, or parts between separators."""
    if cell.startswith("["):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            pass  # a label may well begin with a bracket
    return [tag.strip() for tag in cell.split(separator) if tag.strip()]


def _label(value: Any, place: str) -> str:
    if not isinstance(value, str | int | float):  # a bool is an int
        raise DataError(f"{place}: a label is a text or a number, got {type(value).__name__} {value!r}")
    return str(value)


def _to_split(rows: _Rows, schema: Schema, configs: Sequence[HeadConfig]) -> Split:
    texts, kept = [], []
    for position, text in enumerate(rows.texts):
        try:
            texts.append(read_text(text if isinstance(text, str | bytes) else "" if text is None else str(text)))
            kept.append(position)
        except UnreadableTextError:
            continue
    blocks = []
    for head, config in zip(schema, configs, strict=True):
        values = rows.columns[head.name]
        numbers = [_to_numbers(values[i], head, config, _place(rows.places[i], config)) for i in kept]
        blocks.append(np.array(numbers, dtype=np.float32).reshape(len(kept), head.label_width))
    labels = np.concatenate(blocks, axis=1)
    rows_read = datasets.Dataset.from_dict({"text": texts, "labels": labels})
    return Split(rows_read, dropped=len(rows.texts) - len(kept))


def _place(row: str, config: HeadConfig) -> str:
    return f"{row}: column {config.column or config.name!r}"


def _to_numbers(value: Any, head: Head, config: HeadConfig, place: str) -> list[float]:
    if value is None or (value == "" and head.kind != "multi_label"):
        return [math.nan] * head.label_width
    if head.kind == "regression":
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{place}: a regression needs finite numbers, got {value!r}")
        return [number]
    indices = [_index(label, head, place) for label in _labels_in(value, config, place)]
    if head.kind == "single_label":
        return [float(indices[0])]
    return [float(index in indices) for index in range(head.width)]


def _index(label: str, head: Head, place: str) -> int:
    index = head.index_of.get(label)
    if index is None:
        known = ", ".join(head.labels[:10]) + (", …" if len(head.labels) > 10 else "")
        raise DataError(f"{place}: label {label!r} is not in the schema of head {head.name!r}; allowed are {known}")
    return index
