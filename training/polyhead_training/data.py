"""Rows of text and labels: read from files or a hub data set, checked against the heads, turned into label matrices."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
from numpy.typing import NDArray
from pydantic import ValidationError

from polyhead.encode import UnreadableTextError, read_text
from polyhead.errors import SchemaError
from polyhead.schema import Head, Schema
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.errors import DataError

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
VALIDATION_TENTH = 1  # of sha256(text) % 10


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        texts: none blank.
        labels: float32 ``(n, sum of label widths)``: a class index, a number, or 0/1 a label; NaN where unknown.
        dropped: how many rows had a blank or unreadable text.
    """

    texts: list[str]
    labels: NDArray[np.float32]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Corpus:
    """All splits and the schema that their labels follow; `test` may be None."""

    schema: Schema
    train: Split
    validation: Split
    test: Split | None


@dataclass(frozen=True)
class _Rows:
    source: str
    texts: list[Any]
    columns: dict[str, list[Any]]


def read_corpus(config: DataConfig, heads: Sequence[HeadConfig]) -> Corpus:
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


def _read_hub(config: DataConfig, wanted: dict[str, str]) -> dict[str, _Rows]:
    try:
        loaded = datasets.load_dataset(config.hub)
    except Exception as error:  # the library raises many kinds, each with a cause worth showing
        raise DataError(f"hub data set {config.hub!r}: cannot be loaded ({_first_line(error)})") from error
    if "train" not in loaded:
        raise DataError(f"hub data set {config.hub!r}: has no split 'train', only {sorted(loaded)}")
    splits = [split for split in ("train", "validation", "test") if split in loaded]
    return {split: _take(loaded[split], f"{config.hub}[{split}]", config.text_column, wanted) for split in splits}


def _read_files(patterns: str | list[str], text_column: str, wanted: dict[str, str]) -> _Rows:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    paths = [path for pattern in patterns for path in _expand(pattern)]
    kinds = {Path(path).suffix.lower() for path in paths}
    if len(kinds) != 1 or not kinds <= set(FORMATS):
        raise DataError(f"{', '.join(paths)}: files of one kind are needed, one of {', '.join(FORMATS)}")
    kind = FORMATS[kinds.pop()]
    with tempfile.TemporaryDirectory(prefix="polyhead-data-") as cache:
        try:
            if kind == "csv":
                # Text stays text: type inference would make NA of the label "NA", and numbers of digits.
                frames = [pandas.read_csv(path, dtype=str, keep_default_na=False) for path in paths]
                loaded = datasets.Dataset.from_pandas(pandas.concat(frames, ignore_index=True), preserve_index=False)
            else:
                loaded = datasets.load_dataset(kind, data_files=paths, split="train", cache_dir=cache)
        except Exception as error:  # as above
            raise DataError(f"{', '.join(paths)}: cannot be read as {kind} ({_first_line(error)})") from error
        return _take(loaded, ", ".join(patterns), text_column, wanted)


def _expand(pattern: str) -> list[str]:
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(f"{pattern}: no such file; paths are relative to {Path.cwd()}")
    for path in paths:
        if not os.access(path, os.R_OK) or Path(path).is_dir():
            raise DataError(f"{path}: is not a readable file")
    return paths


def _take(table: datasets.Dataset, source: str, text_column: str, wanted: dict[str, str]) -> _Rows:
    for column in (text_column, *wanted.values()):
        if column not in table.column_names:
            raise DataError(f"{source}: has no column {column!r}, only {', '.join(table.column_names)}")
    columns = {}
    for head, column in wanted.items():
        values = table[column][:]
        feature = table.features[column]
        if isinstance(feature, datasets.ClassLabel):
            values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
        columns[head] = values
    return _Rows(source, table[text_column][:], columns)


def _hold_out(rows: _Rows) -> tuple[_Rows, _Rows]:
    """A tenth by a hash of the text: stable as data grows, and equal texts never stand on both sides."""
    held = [
        int(hashlib.sha256(str(text).encode("utf-8", "replace")).hexdigest(), 16) % 10 == VALIDATION_TENTH
        for text in rows.texts
    ]

    def part(side: bool) -> _Rows:
        keep = [i for i, is_held in enumerate(held) if is_held is side]
        columns = {name: [values[i] for i in keep] for name, values in rows.columns.items()}
        return _Rows(rows.source, [rows.texts[i] for i in keep], columns)

    return part(False), part(True)


def _to_head(config: HeadConfig, train: _Rows) -> Head:
    labels = config.labels
    if labels is None:
        labels = sorted({label for value in train.columns[config.name] for label in _labels_in(value, config)})
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
        raise SchemaError(f"heads: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _labels_in(value: Any, config: HeadConfig) -> Iterable[str]:
    if config.kind == "regression" or value is None or value == "":
        return []
    if config.kind == "single_label":
        return [str(value)]
    return _tags(value, config.separator)


def _tags(value: Any, separator: str) -> list[str]:
    if isinstance(value, str):
        if value.startswith("["):
            try:
                return [str(tag) for tag in json.loads(value)]
            except json.JSONDecodeError:
                pass  # a label may well begin with a bracket
        return [tag.strip() for tag in value.split(separator) if tag.strip()]
    return [str(tag) for tag in value]


def _to_split(rows: _Rows, schema: Schema, configs: Sequence[HeadConfig]) -> Split:
    texts, kept = [], []
    for position, text in enumerate(rows.texts):
        try:
            texts.append(read_text("" if text is None else str(text)))
            kept.append(position)
        except UnreadableTextError:
            continue
    blocks = []
    for head, config in zip(schema, configs, strict=True):
        values = rows.columns[head.name]
        numbers = [_to_numbers(values[i], head, config, rows.source, i) for i in kept]
        blocks.append(np.array(numbers, dtype=np.float32).reshape(len(kept), head.label_width))
    labels = np.concatenate(blocks, axis=1)
    return Split(texts, labels, dropped=len(rows.texts) - len(kept))


def _to_numbers(value: Any, head: Head, config: HeadConfig, source: str, position: int) -> list[float]:
    place = f"{source}: row {position + 1}: column {config.column or config.name!r}"
    if head.kind == "regression":
        if value is None or value == "":
            return [math.nan]
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{place}: a regression needs finite numbers, got {value!r}")
        return [number]
    if head.kind == "single_label":
        if value is None or value == "":
            return [math.nan]
        return [float(_index(str(value), head, place))]
    if value is None:
        return [math.nan] * head.width
    row = [0.0] * head.width
    for tag in _tags(value, config.separator):
        row[_index(tag, head, place)] = 1.0
    return row


def _index(label: str, head: Head, place: str) -> int:
    index = head.index_of.get(label)
    if index is None:
        known = ", ".join(head.labels[:10]) + (", …" if len(head.labels) > 10 else "")
        raise DataError(f"{place}: label {label!r} is not in the schema of head {head.name!r}; allowed are {known}")
    return index


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
