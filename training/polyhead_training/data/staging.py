"""Staged rows: read and filtered by the config, with text and label cells, on disk and mapped into memory.

They also hold the numbers that splitting needs, so that splitting millions of rows reads no text again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from polyhead.encode import UnreadableTextError
from polyhead.files import replaced_file
from polyhead_rows.progress import progress
from polyhead_rows.table import column_of
from polyhead_rows.table_file import Row
from polyhead_rows.text_kinds import TextKinds
from polyhead_training.data.recipe import Recipe
from polyhead_training.data.sources import Fields, Source, place_of
from polyhead_training.errors import BadRowError, DataError

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
            in [0, 1), a hash of what the data are split by; ``times``: how often the row is used in training;
            ``group``, or ``time`` and ``time_is_number``, if the rows are split by them, null where there is none.
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
            with closing(checked_rows(source, needed, show_progress, recipe.hint)) as checked:
                for row in checked:
                    counts["rows"] += 1
                    if counts["rows"] > until:
                        return
                    place = place_of(source.name, row.number, row.line)
                    try:
                        staged = recipe.read(row, place, also)
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
    """The rows. A needed column that is in no row, or is there twice, is an error, raised as soon as that is known."""
    if name := min(filter(None, (column_of(name, source.doubled) for name in needed)), default=None):
        raise DataError(f"{source.name}: several columns are named {name!r}; rename all but one")
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
