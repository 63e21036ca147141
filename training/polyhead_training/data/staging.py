"""Staged rows: read and filtered by the config, with text and label cells, on disk and mapped into memory.

They also hold the numbers that splitting needs, so that splitting millions of rows reads no text again.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from polyhead.encode import UnreadableTextError, read_text
from polyhead.errors import TemplateError
from polyhead.files import replaced_file
from polyhead.schema import HeadKind, Schema
from polyhead.template import FieldError, Template, as_text, fields_json
from polyhead_rows.progress import progress
from polyhead_rows.table import column_of, value_at
from polyhead_rows.table_file import BadText, Row, text_of
from polyhead_rows.text_kinds import TextKinds
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.cells import CellReader
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.sources import Fields, Source, place_of
from polyhead_training.errors import BadRowError, ConfigError, DataError
from polyhead_training.model.tokenizer import TRANSFORMS, named_normalizer

if TYPE_CHECKING:
    import datasets

Indices = NDArray[np.int64]

ROWS_PER_BATCH = 256  # held in memory at a time
ROWS_TO_COUNT = 1_000_000  # are read after a bad row, to say how many bad ones there are


@dataclass(frozen=True)
class Staged:
    """The rows of one source of data, for example of train, which may be several files.

    Attributes:
        source: the paths or the hub's name, for messages.
        files: the names of its files.
        rows: ``text``; ``template_fields``, as JSON, if there is a template; a ``cell_i`` per head; a ``metadata_i``
            per metadata column; ``file``, ``row`` and ``line``: where the row was; ``text_key``: equal for texts that
            are equal after transforms and folding; ``row_key``: equal if all cells are equal too; ``place``: a fraction
            in [0, 1), a hash of what the data are split by; ``times``: how often the row is used in training.
        dropped: how many rows had a blank text.
        filtered: how many rows were left out by ``where`` and ``filters``.
        bad: how many rows were left out by ``bad_rows = "skip"``.
        notes: lines about its texts.
    """

    source: str
    files: list[str]
    rows: datasets.Dataset
    dropped: int
    filtered: int
    bad: int
    notes: tuple[str, ...] = ()

    @property
    def read_rows(self) -> int:
        """How many rows were read, with those that were left out."""
        return len(self.rows) + self.dropped + self.filtered + self.bad

    def columns(self, names: Sequence[str]) -> list[pyarrow.ChunkedArray]:
        """These columns of all rows, mapped into memory."""
        return [self.rows.data.column(name) for name in names]

    def numbers(self, column: str, indices: Indices | slice = slice(None)) -> NDArray[Any]:
        """A column of numbers, of all rows or of those at `indices`."""
        return np.asarray(self.rows.data.column(column).to_numpy())[indices]

    def place_at(self, index: int) -> str:
        """Where the row at this index was, for messages."""
        return self.place_of(self.rows.select_columns(["file", "row", "line"])[index])

    def place_of(self, row: Fields) -> str:
        """Where a row was, for messages."""
        return place_of(self.files[row["file"]], row["row"], row["line"])

    def read(self, columns: Sequence[str], indices: Indices) -> Iterator[Fields]:
        """These columns and the places of the rows at `indices`."""
        rows = self.rows.select_columns([*columns, "file", "row", "line"]).with_format("arrow")
        for batch in rows.select(indices).iter(ROWS_PER_BATCH):
            yield from batch.to_pylist()


class Recipe:
    """How a row becomes a text and label cells. The functions that the config names are imported once.

    Args:
        without: for evaluation: the heads that are left out. Their columns are not read.
        schema: for evaluation: what the model answers is a label, even if it looks like a text that means unknown.

    Raises:
        ConfigError: a function or transform is unknown, or the template is malformed.
    """

    def __init__(
        self,
        config: DataConfig,
        heads: Sequence[HeadConfig],
        metadata: Sequence[str] = (),
        without: Collection[str] | None = None,
        schema: Schema | None = None,
    ) -> None:
        self.config = config
        self.is_evaluation = without is not None
        self.without = frozenset(without or ())
        self.readers = [CellReader(head, () if schema is None else schema[head.name].labels) for head in heads]
        self.metadata = list(metadata)
        self.cells = [f"cell_{i}" for i in range(len(heads))]
        self.template = _template(config)
        self.where = {key: [value] if isinstance(value, str) else value for key, value in config.where.items()}
        self.filters = [UserFunction.named(name, "data.filters") for name in config.filters]
        self.transforms = [
            UserFunction.named(name, "data.text_transforms", tuple(TRANSFORMS))
            for name in config.text_transforms
            if name not in TRANSFORMS
        ]
        self.idle_upsample = list(config.upsample)  # those for which no row was found yet
        self._normalizer = named_normalizer(config.text_transforms)
        self.texts = TextKinds(config.text_column)
        self._splitters = {
            reader.column: reader for reader in self.readers if reader.config.kind == HeadKind.MULTI_LABEL
        }

    @property
    def columns(self) -> list[str]:
        """Those that every source must have, without the heads' columns."""
        text = [self.config.text_column] if self.template is None else list(self.template.fields)
        return [*text, *self.where, *self.metadata]

    @property
    def head_columns(self) -> list[str]:
        """Those of the heads that are not left out."""
        return [column for reader in self.readers if self._is_read(reader) for column in reader.columns]

    def _is_read(self, reader: CellReader) -> bool:
        return reader.config.name not in self.without

    def hint(self, column: str) -> str:
        """What to say if this column is missing."""
        if self.template is not None and column in self.template.fields:
            return f"; text_template needs {', '.join(map(repr, self.template.fields))}"
        head = next((reader.config.name for reader in self.readers if column in reader.columns), None)
        if not self.is_evaluation or head is None:
            return ""
        return (
            f"; it must hold the labels of head {head!r}: --without {shlex.quote(head)} leaves this head out, and a "
            "config in --config names another column"
        )

    @property
    def schema(self) -> pyarrow.Schema:
        """The types of staged rows."""
        kinds = {HeadKind.REGRESSION: pyarrow.float64()}
        return pyarrow.schema(
            [
                ("text", pyarrow.string()),
                ("file", pyarrow.int32()),
                ("row", pyarrow.int64()),
                ("line", pyarrow.int64()),
                ("text_key", pyarrow.int64()),
                ("row_key", pyarrow.int64()),
                ("place", pyarrow.float64()),
                ("times", pyarrow.int32()),
            ]
            + ([] if self.template is None else [("template_fields", pyarrow.string())])
            + [
                (f"cell_{i}", kinds.get(reader.config.kind, pyarrow.list_(pyarrow.string())))
                for i, reader in enumerate(self.readers)
            ]
            + [(f"metadata_{i}", pyarrow.string()) for i in range(len(self.metadata))]
        )

    def read(self, row: Row, place: str) -> Fields | None:
        """The staged row without its place; None if ``where`` and ``filters`` leave it out.

        Raises:
            BadRowError: it cannot be read, has no text, or a cell does not fit its head.
            UnreadableTextError: its text is blank.
        """
        config, fields = self.config, row.fields
        if fields is None:
            raise BadRowError(f"{place}: {row.reason}")
        if not all(self._holds(fields, column, values) for column, values in self.where.items()):
            return None
        if not all(keep.call(fields, place=place) for keep in self.filters):
            return None
        source = text = read_text(self._text(row, fields, place))
        for transform in self.transforms:
            text = transform.text(text, place=place)
        text = read_text(text)
        cells = [reader.read_row(fields, place) if self._is_read(reader) else None for reader in self.readers]
        split_by = as_text(value_at(fields, config.split_column)) if config.split_column is not None else None
        folded = self._folded(text)
        upsample = [up for up in config.upsample if self._holds(fields, up.column, up.values)]
        self.idle_upsample = [up for up in self.idle_upsample if up not in upsample]
        return {
            "text": text,
            "text_key": _key(folded),
            "row_key": _key(repr((folded, [sorted(cell) if isinstance(cell, list) else cell for cell in cells]))),
            "place": _fraction(_fold(source) if split_by is None else split_by),
            "times": max((up.times for up in upsample), default=1),
            **({} if self.template is None else {"template_fields": fields_json(fields, self.template.fields)}),
            **{f"cell_{i}": cell for i, cell in enumerate(cells)},
            **{f"metadata_{i}": _storable(as_text(value_at(fields, name))) for i, name in enumerate(self.metadata)},
        }

    def text_key(self, text: str) -> int:
        """Equal for texts that the model reads alike, apart from case and white space."""
        return _key(self._folded(text))

    def _folded(self, text: str) -> str:
        return _fold(text if self._normalizer is None else self._normalizer.normalize_str(text))

    def _text(self, row: Row, fields: Fields, place: str) -> str:
        if self.template is None:
            text = text_of(row, self.config.text_column)
            if isinstance(text, BadText):
                raise BadRowError(f"{place}: {text.reason}")
            self.texts.add(text, place)
            return text
        try:
            rendered = self.template.render({name: value_at(fields, name) for name in self.template.fields})
        except FieldError as error:
            raise BadRowError(f"{place}: {error}") from error
        if _storable(rendered) != rendered:
            raise BadRowError(f"{place}: the text of text_template is not valid Unicode")
        return rendered

    def _holds(self, fields: Fields, column: str, values: Sequence[str]) -> bool:
        """Whether the cell is one of the values or, if it is a list, holds one."""
        cell = value_at(fields, column)
        if column in self._splitters:
            cell = self._splitters[column].parts_as_spelled(cell)
        return any(as_text(part) in values for part in (cell if isinstance(cell, list) else [cell]))


def stage(
    sources: Iterable[Source],
    recipe: Recipe,
    name: str,
    path: Path,
    also: Sequence[str] = (),
    show_progress: bool = False,
) -> Staged:
    """Reads the sources row by row onto disk.

    Args:
        name: of all the sources together, for messages.
        also: more columns to read, in addition to the recipe's.

    Raises:
        DataError: a file, a column or a row is not as the config says. After a bad row the rest is read too, to say how
            many bad rows there are.
    """
    needed = [*recipe.columns, *also, *recipe.head_columns]
    stops = recipe.config.bad_rows == "stop"
    recipe.texts = TextKinds(recipe.config.text_column)
    files: list[str] = []
    counts: Counter[str] = Counter()
    first: BadRowError | None = None
    until = float("inf")

    def rows() -> Generator[Fields]:
        nonlocal first, until
        for source in sources:
            files.append(source.name)
            doubled = [column_of(name, source.doubled) for name in needed]
            if name := min(filter(None, doubled), default=None):
                raise DataError(f"{source.name}: several columns are named {name!r}; rename all but one")
            with closing(checked_rows(source, needed, show_progress, recipe.hint)) as checked:
                for row in checked:
                    counts["rows"] += 1
                    if counts["rows"] > until:
                        return
                    place = place_of(source.name, row.number, row.line)
                    try:
                        staged = recipe.read(row, place)
                    except UnreadableTextError:
                        counts["dropped"] += 1
                    except BadRowError as error:
                        counts["bad"] += 1
                        first = first or error
                        if stops and counts["bad"] == 1:
                            until = counts["rows"] + ROWS_TO_COUNT
                    except DataError:
                        if first is None or not stops:
                            raise
                        return  # a function of the user's failed while bad rows were counted
                    else:
                        if staged is None:
                            counts["filtered"] += 1
                        elif first is None or not stops:
                            yield staged | {"file": len(files) - 1, "row": row.number, "line": row.line}

    with closing(rows()) as usable:
        staged = write_rows(path, usable, recipe.schema)
    if first is not None and stops:
        raise bad_rows_error(first, counts["rows"], counts["bad"], counts["rows"] > until, recipe.is_evaluation)
    if not recipe.config.any_text and (fault := recipe.texts.fault) is not None:
        raise DataError(
            f"{name}: {fault}; name the column of the text in text_column, a field of an object as in text_column = "
            '"doc.body"; any_text = true takes the column as it is'
        )
    notes = () if recipe.config.any_text else tuple(recipe.texts.lines())
    return Staged(name, files, staged, counts["dropped"], counts["filtered"], counts["bad"], notes)


def write_rows(path: Path, rows: Iterable[Fields], schema: pyarrow.Schema) -> datasets.Dataset:
    """Writes rows to an Arrow file as they come, and maps it into memory.

    Raises:
        DataError: the disk is full.
    """
    import datasets

    try:  # an older file of this name that is mapped into memory stays as it was
        with replaced_file(path) as part, pyarrow.ipc.new_stream(str(part), schema) as writer:
            remaining = iter(rows)
            while batch := list(islice(remaining, ROWS_PER_BATCH)):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
    except OSError as error:
        raise DataError(f"{path.parent}: rows cannot be written ({error}); set TMPDIR to another folder") from error
    return datasets.Dataset.from_file(str(path))


def bad_rows_error(first: BadRowError, rows: int, bad: int, is_cut: bool, is_evaluation: bool) -> DataError:
    """The error about the first bad row and how many there are of `rows`; if `is_cut`, the last was not read."""
    of = f"At least {bad:,} of the first {rows - 1:,} rows" if is_cut else f"Of {rows:,} rows, {bad:,}"
    skip = "--bad-rows skip" if is_evaluation else 'bad_rows = "skip"'
    return DataError(f"{first}. {of} cannot be used: correct them, or leave them out with {skip}")


def joined(paths: str | list[str]) -> str:
    """The paths as a source's name."""
    return paths if isinstance(paths, str) else ", ".join(paths)


def checked_rows(
    source: Source, needed: Sequence[str], show_progress: bool, hint: Callable[[str], str]
) -> Generator[Row]:
    """The rows. A needed column that is in no row is an error, raised as soon as that is known."""
    known = dict.fromkeys(source.columns or ())
    missing = dict.fromkeys(column for column in needed if column_of(column, known) is None)
    if source.columns is None or not missing:
        end, is_empty = 0, True
        shown = progress(f"reading {source.name}", source.total, unit=source.unit, shown=show_progress)
        with shown as bar, closing(source.rows):
            for row in source.rows:
                is_empty = False
                bar.advance(row.end - end)
                end = row.end
                if missing and row.fields is not None:
                    known |= dict.fromkeys(row.fields)
                    missing = {column: None for column in missing if column_of(column, row.fields) is None}
                yield row
        if is_empty or not known:  # no row could be read
            return
    if missing:
        column = next(iter(missing))
        known_columns = ", ".join(known)
        raise DataError(f"{source.name}: has no column {column!r}, only {known_columns}{source.hint}{hint(column)}")


def _template(config: DataConfig) -> Template | None:
    try:
        return None if config.text_template is None else Template(config.text_template)
    except TemplateError as error:
        raise ConfigError(f"data.text_template {config.text_template!r}: {error}") from error


def _storable(text: str | None) -> str | None:
    """The text without the lone surrogates that JSON can spell."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _fold(text: str) -> str:
    """Equal for texts that differ only in case and white space."""
    return " ".join(text.split()).casefold()


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _fraction(text: str) -> float:
    """A hash as a fraction in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53  # as many bits as a float holds
