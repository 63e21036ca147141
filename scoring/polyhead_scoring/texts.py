"""Where the text of a row is: in one column, or in the columns of the fields that the model declares.

Fields become a JSON object. The model renders it with its text template; nothing is rendered here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from pydantic import BaseModel, ConfigDict

from polyhead.template import FieldError, fields_json
from polyhead_rows.errors import TableError
from polyhead_rows.table import column_of, value_at
from polyhead_rows.table_file import BadText, ReadOptions, Row, TableFile, find_files, open_table, text_of
from polyhead_scoring import ScoringError


class TextSource(BaseModel):
    """The columns that make a row's text.

    Attributes:
        text_column: holds the text, if there are no fields.
        fields: of the model's template; empty if the text is read from `text_column`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_column: str = "text"
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, text_column: str | None, fields: tuple[str, ...]) -> TextSource:
        """A named column comes before the fields of the model; without both the column is ``text``."""
        if text_column is not None or not fields:
            return cls(text_column="text" if text_column is None else text_column)
        return cls(fields=fields)

    @property
    def text_columns(self) -> list[str]:
        """The columns to read."""
        return list(self.fields) or [self.text_column]

    def text_of(self, row: Row) -> str | BadText:
        """The row's text, or its fields as a JSON object. A field that this row lacks is empty."""
        if not self.fields:
            return text_of(row, self.text_column)
        if row.fields is None:
            return BadText(row.reason or "the row could not be read")
        try:
            return fields_json({name: value_at(row.fields, name) for name in self.fields}, self.fields)
        except FieldError as error:
            return BadText(str(error))

    def check_columns(self, table: TableFile) -> None:
        """Refuses a file that lacks one of the columns. Files whose rows have columns of their own pass.

        Raises:
            TableError: a column is missing, or several have its name.
        """
        if table.columns is not None and not table.doubled.intersection(self.fields):
            self.check_names(table.columns, table.name)
        table.check_columns(self.text_columns)

    def check_names(self, columns: list[str], place: str) -> None:
        """Makes sure that all fields have a column.

        Raises:
            ScoringError: names the fields of the model and the columns that there are.
        """
        if missing := [name for name in self.fields if column_of(name, columns) is None]:
            raise ScoringError(
                f"{place}: no column {', '.join(map(repr, missing))}; the model's fields are "
                f"{', '.join(map(repr, self.fields))}, the columns are {', '.join(map(repr, columns)) or 'none'}; "
                "name --text-column if one column holds the finished text"
            )


def read_texts(patterns: str, source: TextSource) -> Iterator[str]:
    """The texts of all files, one at a time.

    Raises:
        TableError, ScoringError: a file cannot be read, a column is missing, or a row has no text.
    """
    for name in find_files(patterns):
        table = open_table(name, ReadOptions())
        source.check_columns(table)
        seen: dict[str, None] = {}
        with closing(table.rows(columns=source.text_columns)) as rows:
            for row in rows:
                seen |= dict.fromkeys(row.fields or ())
                text = source.text_of(row)
                if isinstance(text, BadText):
                    raise TableError(f"{table.place_of(row)}: {text.reason}")
                yield text
        if seen:
            source.check_names(list(seen), table.name)
