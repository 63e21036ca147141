"""Staged rows: read, filtered, with text and cells as the config says, on disk and mapped into memory.

They carry what splitting needs as numbers, so that splitting millions of rows reads no text again.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from numpy.typing import NDArray

from polyhead.encode import UnreadableTextError, read_text
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.labels import CellReader
from polyhead_training.data.rows import ROWS_A_BATCH, Row, Table, as_text, write_rows
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.model.tokenizer import TRANSFORMS, named_normalizer

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Staged:
    """The rows of one source.

    Attributes:
        source: the paths or the hub's name, for messages.
        tables: the names of its files.
        rows: ``text``, a ``cell_i`` a head, a ``metadata_i`` a metadata column; ``table`` and ``row``, where it stood;
            ``text_key`` and ``row_key``, equal where the texts, transformed and folded, or these and all cells, are;
            ``place``, a fraction in [0, 1) by a hash of what it is split by; ``times``, how often it shall stand in
            training.
        dropped: rows whose text is blank or unreadable.
        filtered: rows left out by ``where`` and ``filters``.
    """

    source: str
    tables: list[str]
    rows: datasets.Dataset
    dropped: int
    filtered: int

    def numbers(self, column: str) -> NDArray[Any]:
        """A column of numbers of all rows."""
        return self.rows.data.column(column).to_numpy()

    def place_of(self, row: Row) -> str:
        """Where a row stood, for messages."""
        return f"{self.tables[row['table']]}: row {row['row']}"

    def read(self, columns: Sequence[str], indices: Indices | None = None) -> Iterator[Row]:
        """These columns, ``table`` and ``row`` of all rows, or of those at `indices`."""
        rows = self.rows.select_columns([*columns, "table", "row"]).with_format("arrow")
        for batch in (rows if indices is None else rows.select(indices)).iter(ROWS_A_BATCH):
            yield from batch.to_pylist()


class Recipe:
    """How a row becomes a text and cells; the functions that the config names are imported once.

    Raises:
        ConfigError: a function, a transform or the template is none.
    """

    def __init__(self, config: DataConfig, heads: Sequence[HeadConfig], metadata: Sequence[str] = ()) -> None:
        self.config = config
        self.readers = [CellReader(head) for head in heads]
        self.metadata = list(metadata)
        self.cells = [f"cell_{i}" for i in range(len(heads))]
        self.template = None if config.text_template is None else _parse(config.text_template)
        self.where = {key: [value] if isinstance(value, str) else value for key, value in config.where.items()}
        self.filters = [UserFunction.named(name, "data.filters") for name in config.filters]
        self.transforms = [
            UserFunction.named(name, "data.text_transforms", tuple(TRANSFORMS))
            for name in config.text_transforms
            if name not in TRANSFORMS
        ]
        self.idle_upsample = list(config.upsample)  # without a row as yet
        self._normalizer = named_normalizer(config.text_transforms)
        self._splitters = {reader.column: reader for reader in self.readers if reader.config.kind == "multi_label"}

    @property
    def columns(self) -> list[str]:
        """Those that every source must have, apart from the heads'."""
        if self.template is None:
            text = [self.config.text_column]
        else:
            text = [field for _, field in self.template if field is not None]
        return [*text, *self.where, *self.metadata]

    @property
    def schema(self) -> pyarrow.Schema:
        """The types of staged rows."""
        kinds = {"regression": pyarrow.float64()}
        return pyarrow.schema(
            [
                ("text", pyarrow.string()),
                ("table", pyarrow.int32()),
                ("row", pyarrow.int64()),
                ("text_key", pyarrow.int64()),
                ("row_key", pyarrow.int64()),
                ("place", pyarrow.float64()),
                ("times", pyarrow.int32()),
            ]
            + [
                (f"cell_{i}", kinds.get(reader.config.kind, pyarrow.list_(pyarrow.string())))
                for i, reader in enumerate(self.readers)
            ]
            + [(f"metadata_{i}", pyarrow.string()) for i in range(len(self.metadata))]
        )

    def keeps(self, row: Row, place: str) -> bool:
        """Whether the row passes ``where`` and ``filters``."""
        return all(self._holds(row, column, values) for column, values in self.where.items()) and all(
            keep.call(row, place=place) for keep in self.filters
        )

    def read(self, row: Row, place: str) -> Row:
        """The staged row, as yet without its place.

        Raises:
            UnreadableTextError: it has no text.
            DataError: a cell is not as its head needs it.
        """
        config = self.config
        source = text = read_text(self._text(row))
        for transform in self.transforms:
            text = transform.text(text, place=place)
        text = read_text(text)
        cells = [reader.read(row.get(reader.column), place) for reader in self.readers]
        split_by = as_text(row.get(config.split_column)) if config.split_column is not None else None
        folded = self._folded(text)
        upsample = [up for up in config.upsample if self._holds(row, up.column, up.values)]
        self.idle_upsample = [up for up in self.idle_upsample if up not in upsample]
        return {
            "text": text,
            "text_key": _key(folded),
            "row_key": _key(repr((folded, [sorted(cell) if isinstance(cell, list) else cell for cell in cells]))),
            "place": _fraction(_fold(source) if split_by is None else split_by),
            "times": max((up.times for up in upsample), default=1),
            **{f"cell_{i}": cell for i, cell in enumerate(cells)},
            **{f"metadata_{i}": _storable(as_text(row.get(name))) for i, name in enumerate(self.metadata)},
        }

    def text_key(self, text: str) -> int:
        """Equal for texts that the model reads alike, but for case and white space."""
        return _key(self._folded(text))

    def _folded(self, text: str) -> str:
        return _fold(text if self._normalizer is None else self._normalizer.normalize_str(text))

    def _text(self, row: Row) -> str:
        if self.template is None:
            return as_text(row.get(self.config.text_column)) or ""
        parts = [as_text(row.get(field)) or "" if field is not None else "" for _, field in self.template]
        if not any(part.strip() for part in parts):
            return ""  # the template's own letters make no text
        return "".join(literal + part for (literal, _), part in zip(self.template, parts, strict=True))

    def _holds(self, row: Row, column: str, values: Sequence[str]) -> bool:
        """Whether the cell is one of the values, or holds one if it is a list."""
        cell = row.get(column)
        if column in self._splitters:
            cell = self._splitters[column].split(cell)
        return any(as_text(part) in values for part in (cell if isinstance(cell, list) else [cell]))


def stage(
    tables: Iterable[Table], recipe: Recipe, source: str, path: Path, also: Sequence[str] = (), lenient: bool = False
) -> Staged:
    """Reads the tables row by row onto disk.

    Args:
        also: columns that are needed besides the recipe's.
        lenient: whether a head's column may be absent; its labels are then unknown.

    Raises:
        DataError: a file, a column or a row is not as the config says.
    """
    needed = [*recipe.columns, *also, *(() if lenient else (reader.column for reader in recipe.readers))]
    names: list[str] = []
    counts = {"dropped": 0, "filtered": 0}

    def rows() -> Iterator[Row]:
        for table in tables:
            names.append(table.name)
            for number, row in _checked(table, needed):
                place = f"{table.name}: row {number}"
                if not recipe.keeps(row, place):
                    counts["filtered"] += 1
                    continue
                try:
                    staged = recipe.read(row, place)
                except UnreadableTextError:
                    counts["dropped"] += 1
                    continue
                yield staged | {"table": len(names) - 1, "row": number}

    staged = write_rows(path, rows(), recipe.schema)
    return Staged(source, names, staged, counts["dropped"], counts["filtered"])


def joined(paths: str | list[str]) -> str:
    """The paths as a source's name."""
    return paths if isinstance(paths, str) else ", ".join(paths)


def _checked(table: Table, needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Numbered rows; a column that is needed and stands in no row is an error, at the first row where that tells."""
    missing = dict.fromkeys(needed)
    known: dict[str, None] = {}
    number = 0
    for number, row in enumerate(table.rows, start=1):
        if missing:
            known |= dict.fromkeys(row)
            missing = {column: None for column in missing if column not in row}
            if missing and not table.sparse:
                break
        yield number, row
    if missing and number:
        raise DataError(f"{table.name}: has no column {next(iter(missing))!r}, only {', '.join(known)}")


def _parse(template: str) -> list[tuple[str, str | None]]:
    """Literals, each with the column that follows it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"data.text_template {template!r}: {error}") from error
    for _, field, form, conversion in parts:
        if field == "" or form or conversion:
            raise ConfigError(f"data.text_template {template!r}: braces must hold a column's name and nothing else")
    if not any(field for _, field, _, _ in parts):
        raise ConfigError(f"data.text_template {template!r}: names no column; write it in braces, as {{title}}")
    return [(literal, field) for literal, field, _, _ in parts]


def _storable(text: str | None) -> str | None:
    """Without the lone surrogates that JSON can spell."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _fold(text: str) -> str:
    """Equal for texts that differ in case and white space alone."""
    return " ".join(text.split()).casefold()


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _fraction(text: str) -> float:
    """A hash as a fraction in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53  # as many bits as a float holds
