"""The partition: consecutive rows of one file that are read, scored and written together. Files are cut here.

Cutting reads texts but does not tokenize them. It estimates tokens: bytes / bytes per token of a sample, at most
the model's ``max_length``. So the cost of a partition is bounded, even if its texts are long.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow
from pydantic import BaseModel, ConfigDict

from polyhead_rows.columns import Kinds, merge_kinds, note_kinds, to_table
from polyhead_rows.table import column_of
from polyhead_rows.table_file import BadText, Row, Start, TableFile, open_table
from polyhead_rows.text_kinds import TextKinds
from polyhead_scoring import ScoringError
from polyhead_scoring.job import InputFile, Job

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PARTITION_BYTES = 64 << 20  # of a partition's rows: bounds memory if other columns are large
UNPACKED = 4  # bytes in memory per byte of a Parquet or Arrow file, roughly
SAMPLE_ROWS = 500  # tokens are counted in this many rows before partitions are cut
ENGLISH = 4.0  # bytes per token

Columns = Any  # what a survey finds out about a file's columns: `Kinds`, or a pyarrow.Schema


class Partition(BaseModel):
    """Consecutive rows of one file.

    Attributes:
        file: path or URI.
        first_row: its position in the file, counted from 0.
        start: where the reader begins.
        tokens: estimated.
        number: its position among all partitions. The part is named after it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    first_row: int
    rows: int
    start: Start
    tokens: int
    number: int = 0

    @property
    def name(self) -> str:
        """The part's name without a suffix."""
        return f"part-{self.number:06d}"


class Limits(BaseModel):
    """What a partition may hold, and how many tokens a text counts.

    Attributes:
        tokens: a partition that has this many takes no further row.
        max_length: tokens of a text that the model reads at most.
        bytes_per_token: in texts of this data and tokens of this model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int
    max_length: int
    bytes_per_token: float = ENGLISH

    def estimate(self, text_bytes: int) -> int:
        """How many tokens of a text the model will read; a row counts at least one."""
        return max(1, min(self.max_length, math.ceil(text_bytes / self.bytes_per_token)))


class RowSize(NamedTuple):
    """How large a row is, and where it begins."""

    text_bytes: int
    row_bytes: int
    start: Start


@dataclass(frozen=True)
class Part:
    """The rows of a partition: their texts, and the columns of the input that the output keeps."""

    rows: list[Row]
    texts: list[str | BadText]
    kept: pyarrow.Table


def cut(file: str, rows: Iterable[RowSize], limits: Limits) -> Iterator[Partition]:
    """The partitions of a file, in order. Each row is in exactly one. A row that exceeds the limits has its own."""
    first = count = tokens = size = 0
    start = Start()
    for row in rows:
        more = limits.estimate(row.text_bytes)
        if count and (tokens + more > limits.tokens or size + row.row_bytes > PARTITION_BYTES):
            yield Partition(file=file, first_row=first, rows=count, start=start, tokens=tokens)
            first, count, tokens, size = first + count, 0, 0, 0
        if not count:
            start = row.start
        count, tokens, size = count + 1, tokens + more, size + row.row_bytes
    if count:
        yield Partition(file=file, first_row=first, rows=count, start=start, tokens=tokens)


def survey(
    file: InputFile, job: Job, limits: Limits, advance: Callable[[int], object] = lambda rows: None
) -> tuple[list[Partition], Columns]:
    """Cuts a file into partitions and finds out its columns. Calls `advance` for every thousand rows.

    Raises:
        TableError: the file cannot be read, or lacks the text column.
    """
    table = open_table(file.name, job.read)
    job.check_columns(table)
    table.check_columns([name for name in job.keep or () if name in table.doubled])
    kinds: Kinds = {name: {"string"} for name in table.columns or ()}

    def sizes() -> Iterator[RowSize]:
        mean = UNPACKED * file.size // max(table.total, 1) if table.arrow_schema is not None else 0
        start = Start()
        for row in table.rows(columns=job.text_columns):
            text = job.text_of(row)
            text_bytes = _byte_count(text) if isinstance(text, str) else 0
            if table.columns is None and row.fields is not None:
                note_kinds(kinds, row.fields)
            yield RowSize(text_bytes, max(mean, text_bytes) if mean else _row_bytes(row), start)
            start = row.after
            if row.number % 1000 == 0:
                advance(1000)

    partitions = list(cut(file.name, sizes(), limits))
    if table.arrow_schema is None:
        return partitions, kinds
    schema = table.arrow_schema.remove_metadata() if len(job.inputs) > 1 else table.arrow_schema
    return partitions, pyarrow.schema([field for field in schema if field.name not in table.doubled], schema.metadata)


def kept_schema(job: Job, found: Sequence[Columns]) -> pyarrow.Schema:
    """The columns of the input that the output keeps.

    Args:
        found: what `survey` found in each file.

    Raises:
        ScoringError: the files do not agree in their columns, or one that is asked for is in no file.
    """
    schemas = [columns for columns in found if isinstance(columns, pyarrow.Schema)]
    if len(schemas) not in (0, len(found)):
        raise ScoringError("the input mixes Parquet or Arrow files with text files; score them in two runs")
    for schema in schemas[1:]:
        if schema != schemas[0]:
            differing = sorted({field.name for field in set(schemas[0]) ^ set(schema)}) or "the order of columns"
            raise ScoringError(f"the input files do not agree in their columns; these differ: {differing}")
    columns = schemas[0] if schemas else merge_kinds([kinds for kinds in found if isinstance(kinds, dict)])
    job.check_names(columns.names, "the input")
    lacking = [name for name in job.text_columns if column_of(name, columns.names) is None]
    for name in (*lacking, *(job.keep or ())):
        if name not in columns.names:
            raise ScoringError(f"column {name!r} is in no input file; there are {', '.join(columns.names) or 'none'}")
    return columns if job.keep is None else pyarrow.schema([columns.field(name) for name in job.keep], columns.metadata)


def bytes_per_token(job: Job, tokenizer: Tokenizer) -> float:
    """The median over the first rows of the first file with rows; the value for English if they have no text."""
    texts: list[str] = []
    for file in job.inputs:
        if not file.size:
            continue
        with closing(open_table(file.name, job.read).rows(columns=job.text_columns)) as rows:
            first = [job.text_of(row) for row in islice(rows, SAMPLE_ROWS)]
        texts = [text for text in first if isinstance(text, str)]
        if first:
            break
    encoded = tokenizer.encode_batch(texts)
    ratios = [_byte_count(text) / len(found.ids) for text, found in zip(texts, encoded, strict=True) if found.ids]
    return max(1.0, statistics.median(ratios)) if ratios else ENGLISH


def odd_texts(job: Job) -> str | None:
    """What the text column holds if the first rows of the first file with rows have no texts but lists or numbers."""
    kinds = TextKinds(job.text_column)
    for file in job.inputs:
        table = open_table(file.name, job.read)
        with closing(table.rows(columns=job.text_columns)) as rows:
            for row in islice(rows, SAMPLE_ROWS):
                if isinstance(text := job.text_of(row), str):
                    kinds.add(text, table.place_of(row))
        if kinds.total:
            break
    return kinds.fault


class PartReader:
    """Reads partitions. A file that cannot seek stays open, so that partitions in order read it only once."""

    def __init__(self, job: Job, kept: pyarrow.Schema) -> None:
        self._job = job
        self._kept = kept
        self._open: tuple[str, Iterator[Row], int] | None = None  # file, rows, number of the next row
        self._table: TableFile | None = None

    def read(self, partition: Partition) -> Part:
        """The rows of a partition.

        Raises:
            TableError: the file cannot be read.
            ScoringError: it has fewer rows than when it was cut.
        """
        if self._table is None or self._table.name != partition.file:
            self._table = open_table(partition.file, self._job.read)
        table = self._table
        rows = list(islice(self._rows(table, partition), partition.rows))
        changed = ScoringError(
            f"{partition.file}: has {len(rows)} rows in a place that had {partition.rows}, or other columns: the file "
            "changed; begin anew with --restart"
        )
        if len(rows) != partition.rows:
            raise changed
        try:
            if table.arrow_schema is None:
                kept = to_table([row.fields or {} for row in rows], self._kept)
            else:
                batches = list(table.batches(partition.start.number, partition.rows, self._kept.names))
                kept = pyarrow.Table.from_batches(batches).select(self._kept.names).cast(self._kept)
        except (pyarrow.ArrowException, KeyError, TypeError, OverflowError) as error:
            raise changed from error
        return Part(rows, [self._job.text_of(row) for row in rows], kept)

    def _rows(self, table: TableFile, partition: Partition) -> Iterator[Row]:
        if table.can_seek:
            return table.rows(partition.start, self._job.text_columns)
        name, rows, number = self._open or ("", iter(()), 0)
        if name != table.name or number > partition.start.number:
            rows, number = iter(table.rows()), 1
        self._open = (table.name, rows, partition.start.number + partition.rows)
        return islice(rows, partition.start.number - number, None)


def _byte_count(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _row_bytes(row: Row) -> int:
    if row.fields is None:
        return len(row.raw or "")
    return sum(len(value) if isinstance(value, str) else len(str(value)) for value in row.fields.values())
