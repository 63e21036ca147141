"""What the texts of a column are: people's words, or lists, objects and numbers that were written out as text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from polyhead_rows.spelling import shortened, spells_structure

WORTH_SAYING = 0.02  # of all texts; people do write a number now and then
MISSING_TEXTS = {"nan", "none", "null", "n/a", "<na>"}  # in lower case
_FLOAT = re.compile(r"\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*")
_WHOLE = re.compile(r"\s*[+-]?\d+\.?\s*")


class TextKinds:
    """Counts the texts of a column that are lists, objects or numbers."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.total = self.spelled = self.floats = self.wholes = self.missing = 0
        self._first: dict[str, str] = {}

    def add(self, text: str, place: str) -> None:
        """Counts a text."""
        if text.isspace() or not text:
            return
        self.total += 1
        if spells_structure(text):
            self.spelled += 1
            self._first.setdefault("spelled", f"{place}: {shortened(text)!r}")
        elif _FLOAT.fullmatch(text):
            self.floats += 1
            self._first.setdefault("number", f"{place}: {shortened(text)!r}")
        elif _WHOLE.fullmatch(text):
            self.wholes += 1
            self._first.setdefault("number", f"{place}: {shortened(text)!r}")
        elif len(text) < 9 and text.strip().casefold() in MISSING_TEXTS:
            self.missing += 1
            self._first.setdefault("missing", f"{place}: {text!r}")

    @property
    def fault(self) -> str | None:
        """What the column holds if it has no text: lists or objects only, or numbers only and some with a point."""
        if self.total and self.spelled == self.total:
            return f"column {self.column!r} holds lists or objects and no texts (first {self._first['spelled']})"
        if self.floats and self.floats + self.wholes == self.total:
            return f"column {self.column!r} holds numbers and no texts (first {self._first['number']})"
        return None

    def lines(self) -> Iterator[str]:
        """What the user should know about a column that has both."""
        if self.missing:
            yield (
                f"column {self.column!r}: {self.missing} texts are words that data frames write for a missing text, "
                f"and are read as texts (first {self._first['missing']}); a function in filters leaves them out"
            )
        numbers = self.floats + self.wholes
        for count, what, first in ((self.spelled, "lists or objects", "spelled"), (numbers, "numbers", "number")):
            if count >= WORTH_SAYING * self.total and count:
                yield (
                    f"column {self.column!r}: {count} of {self.total} texts are {what} and are read as written "
                    f"(first {self._first[first]})"
                )
