"""What every format has in common: the options, a row, the meaning of its text, and the base class of the readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from polyhead_rows.errors import TableError, one_line

FormatName = Literal["csv", "tsv", "jsonl", "json", "parquet", "arrow", "lines"]


class ReadOptions(BaseModel):
    """How to read a file. Training configs and command lines have the same keys.

    Attributes:
        format: by default, the file's name says it.
        delimiter: between the cells of a CSV file; by default a comma. TSV has a tab.
        encoding: a Python codec's name. By default UTF-8, with or without a byte order mark, or UTF-16 with one.
        header: whether the first line of a CSV or TSV file, or each object of a JSON file, names the columns.
        columns: the names, if `header` is false. Rows of JSON are then lists of cells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: FormatName | None = None
    delimiter: str | None = Field(default=None, examples=[";"])
    encoding: str | None = Field(default=None, examples=["cp1252"])
    header: bool = True
    columns: tuple[str, ...] | None = Field(default=None, examples=[("id", "text", "topic")])

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, delimiter: str | None) -> str | None:
        if delimiter == "\\t":  # this is how a shell passes a tab
            return "\t"
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise ValueError(f"delimiter must be one character, got {delimiter!r}")
        return delimiter

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        try:
            "".encode("utf-8" if encoding is None else encoding)
        except (LookupError, ValueError) as error:
            raise ValueError(f"encoding {encoding!r} is unknown; utf-8, utf-16 and cp1252 are examples") from error
        return encoding

    @model_validator(mode="after")
    def _check_header(self) -> ReadOptions:
        if not self.header and not self.columns:
            raise ValueError('header = false needs the names of the columns: columns = ["id", "text"]')
        if self.header and self.columns is not None:
            raise ValueError("columns is for files without a header: set header = false, or leave columns out")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns must differ, got {list(self.columns)}")
        return self


class Start(NamedTuple):
    """A position before a row, from `Row.after`. It is plain numbers, so that it can be stored.

    Attributes:
        number: of the row that comes next.
        line: on which the reader stands.
        offset: in bytes; only readers that can seek use it.
        single_until: up to this offset each line is read as a row of its own, because an open quote was found before.
    """

    number: int = 1
    line: int = 1
    offset: int = 0
    single_until: int = 0


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        number: from 1 in its file. A header and blank lines are no rows.
        line: on which it begins; None in Parquet and Arrow.
        fields: plain Python values by column; None if the row could not be read.
        reason: one line: why it could not be read and what to do; None if it could.
        end: how far the file is read after it, in the unit of `TableFile.total`.
        raw: the source text of a row that could not be read, shortened and printable.
        next_line: the line behind the row.
        single_until: see `Start`.
    """

    number: int
    line: int | None
    fields: dict[str, Any] | None
    reason: str | None
    end: int
    raw: str | None = None
    next_line: int = 1
    single_until: int = 0

    @property
    def after(self) -> Start:
        """The position behind this row, from which `TableFile.rows` goes on."""
        return Start(self.number + 1, self.next_line, self.end, self.single_until)


@dataclass(frozen=True, slots=True)
class BadText:
    """Why a row has no text."""

    reason: str


ABSENT = object()  # a row lacks a column


def text_of(row: Row, column: str) -> str | BadText:
    """The text of a row. A blank text is a text too; the caller decides what to do with it."""
    if row.fields is None:
        return BadText(row.reason or "the row could not be read")
    value = value_at(row.fields, column, ABSENT)
    if value is ABSENT:
        return BadText(f"no column {column!r}; the row has {_listed(row.fields)}")
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            return BadText(f"column {column!r} has half of a surrogate pair (\\u{code:04x}), which is no character")
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            return BadText(f"column {column!r} is not UTF-8: byte 0x{value[error.start]:02x} at {error.start}")
    if value is None:
        return BadText(f"column {column!r} is null; a text is needed")
    return BadText(f"column {column!r} must be a string, got {kind_of(value)}")


def value_at(fields: Mapping[str, Any], name: str, absent: Any = None) -> Any:
    """The value of a column, or of a field within one: ``doc.body``, and ``choices.0`` in a list.

    A column that has the whole name comes first.
    """
    if name in fields or "." not in name:
        return fields.get(name, absent)
    column = column_of(name, fields)
    if column is None:
        return absent
    value = fields[column]
    for part in name[len(column) + 1 :].split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None if value is None else absent
    return value


def column_of(name: str, columns: Container[str]) -> str | None:
    """The column that has this name or, for a field such as ``doc.body``, that holds it; None if there is none."""
    while name not in columns:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


class TableFile:
    """One input file. `open_table` makes it.

    Attributes:
        name: path or URI, for messages.
        format: its name, see `ReadOptions`.
        columns: in their order; None if each row has its own (JSON lines, JSON array).
        doubled: names that several columns have. They are in no row; `check_columns` refuses them.
        arrow_schema: of Parquet and Arrow files.
        total: how far there is to read: bytes (compressed if the file is), or rows of Parquet and Arrow; 0 if unknown.
        can_seek: whether ``rows(start)`` goes to `start` without reading what is before.
    """

    format: str = ""
    columns: list[str] | None = None
    doubled: frozenset[str] = frozenset()
    arrow_schema: pyarrow.Schema | None = None
    total: int = 0
    can_seek: bool = False
    hint: str = ""  # what to do if a column is missing

    def __init__(self, name: str) -> None:
        self.name = name

    def set_columns(self, names: Sequence[str]) -> None:
        """Sets `columns` and `doubled`."""
        times = Counter(names)
        self.doubled = frozenset(name for name in times if times[name] > 1)
        self.columns = [name for name in names if times[name] == 1]

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Generator[Row]:
        """All rows from `start` on, in bounded memory. Close the generator if it is not read to its end.

        Args:
            start: `Row.after` of the last row that was read.
            columns: the only ones that are needed; Parquet and Arrow read no others. Other formats ignore it.

        Raises:
            TableError: while rows are read: the rest of the file cannot be read.
        """
        raise NotImplementedError

    def batches(self, first_row: int, rows: int, columns: Sequence[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Rows with their Arrow types; of Parquet and Arrow files only.

        Args:
            first_row: its number, from 1.
            rows: how many.
            columns: the only ones that are needed; all that are not doubled if None.
        """
        raise TableError(f"{self.name}: {self.format} has no Arrow batches")

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuses a file that lacks one of the columns. Files whose rows have columns of their own pass.

        Raises:
            TableError: a column is missing, or several have its name.
        """
        for name in names:
            if (doubled := column_of(name, self.doubled)) is not None:
                raise TableError(f"{self.name}: several columns are named {doubled!r}; rename all but one")
            if self.columns is not None and column_of(name, self.columns) is None:
                raise TableError(f"{self.name}: no column {name!r}; it has {_listed(self.columns)}{self.hint}")

    def place_of(self, row: Row) -> str:
        """File and line, or file and row, for messages."""
        return f"{self.name}:{row.line}" if row.line is not None else f"{self.name}: row {row.number}"


def kind_of(value: object) -> str:
    """What a value is, for messages."""
    return _KINDS.get(type(value), type(value).__name__)


_KINDS: dict[type, str] = {
    str: "a string", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


def _listed(names: Sequence[str] | dict[str, Any], most: int = 12) -> str:
    shown = ", ".join(one_line(repr(name)) for name in list(names)[:most])
    return (shown + (", …" if len(names) > most else "")) or "none"
