"""A row of an input: its text, or why it has none that can be sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyhead_client.batches import HEADER_BYTES, ROW_BYTES
from polyhead_client.errors import UsageError
from polyhead_client.settings import LONGEST_REQUEST
from polyhead_client.texts import encode_text

LONGEST_TEXT = LONGEST_REQUEST - HEADER_BYTES - ROW_BYTES  # bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: counted from 1, a header not included.
        line: where it begins, in files of lines.
        text: what is to be scored; None if there is a reason.
        reason: why it cannot be sent.
        fields: the row by column name; None where it could not be read, or was not asked for.
        end: how far the input is read after it, in its source's unit.
    """

    number: int
    line: int | None
    text: str | None
    reason: str | None
    fields: dict[str, Any] | None
    end: int


def read_row(number: int, line: int | None, text: object, fields: dict[str, Any] | None, end: int) -> Row:
    """A row whose text is still to be checked."""
    try:
        size = len(encode_text(text, number))
    except UsageError as error:
        return Row(number, line, None, str(error), fields, end)
    if size > LONGEST_TEXT:
        return Row(number, line, None, f"the text has {size:,} bytes, more than a request may have", fields, end)
    assert isinstance(text, str)
    return Row(number, line, text, None, fields, end)
