"""JSON lines (one object per line) and a JSON array of objects, which may be a part of a JSON object.

With `ReadOptions.columns` a row may also be a list of cells. An array is parsed piece by piece, never as a whole.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from polyhead_rows.byte_source import UTF8_BOM, ByteSource, reading
from polyhead_rows.errors import TableError
from polyhead_rows.lines import LONGEST_LINE, LineTableFile, TextTableFile, encoding_reason, shown
from polyhead_rows.place import split_part
from polyhead_rows.table import ReadOptions, Row, Start, kind_of

DEEPEST = 100  # brackets within brackets
TOO_DEEP = f"is nested deeper than {DEEPEST} levels"
CHUNK_BYTES = 2**18
NO_SPACE = re.compile(r"[^ \t\r\n]")
_CONSTANTS = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}
_DECODER = json.JSONDecoder(parse_constant=_CONSTANTS.__getitem__)


class JsonLinesFile(LineTableFile):
    """One JSON object per line. Blank lines are no rows. NaN, which JSON does not have, is null."""

    format = "jsonl"

    def __init__(self, source: ByteSource, options: ReadOptions) -> None:
        super().__init__(source)
        self._names = options.columns

    def _fields(self, line: bytes) -> tuple[dict[str, Any] | None, str | None]:
        try:
            # Files that were joined have byte order marks within.
            text = line.decode() if line[0] != UTF8_BOM[0] else line.decode("utf-8-sig")
            value = _DECODER.decode(text)
        except UnicodeDecodeError:
            return None, _encoding_reason(line, self._source.encoding)
        except (ValueError, RecursionError) as error:
            comma = "; remove the comma at its end" if line.rstrip().endswith(b",") else ""
            return None, f"{_json_reason(error)}; one object per line is wanted{comma}"
        value, reason = _named(value, self._names)
        reason = reason or _reason_against(value, text)
        if reason is None:
            return value, None
        hint = (
            '; for a file that is one array name it .json or set format = "json"'
            if isinstance(value, list) and self._names is None
            else ""
        )
        return None, reason + hint


class JsonArrayFile(TextTableFile):
    """A JSON array of objects, one per row. The name ``splits.json#train`` means the array ``train`` of an object."""

    format = "json"

    def __init__(self, source: ByteSource, options: ReadOptions) -> None:
        super().__init__(source)
        self.can_seek = False
        self._names = options.columns
        self._part = split_part(source.name)[1]

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Generator[Row]:
        """All rows from `start` on; what is before it is read again.

        Raises:
            TableError: it is not an array, or the array is broken, so that the rest cannot be read.
        """
        first = (start or Start()).number
        with reading(self.name), self._source.open() as (stream, position):
            text = _JsonText(self.name, stream)
            if self._part is not None:
                text.enter(self._part)
            text.expect("[")
            number = 0
            while text.next_element(number, self._part is not None):
                number += 1
                line = text.line
                source, value = text.take(number)
                if number < first:
                    continue
                value, reason = _named(value, self._names)
                reason = reason or _reason_against(value, source)
                if reason is None and not source.isascii():
                    reason = _encoding_reason(source.encode("utf-8", "surrogateescape"), self._source.encoding)
                raw = None if reason is None else shown(source.encode("utf-8", "surrogateescape"))
                fields = value if reason is None else None
                yield Row(number, line, fields, reason, position(text.offset), raw, text.line)


class _JsonText:
    """The text of an array as a window that moves over the file.

    Attributes:
        line: on which the next character stands.
        offset: bytes that were taken from the stream.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self.line = 1
        self.offset = 0
        self._name = name
        self._stream = stream
        self._window = ""
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._ended = False

    def expect(self, character: str) -> None:
        """Skips the character.

        Raises:
            TableError: there is another character.
        """
        found = self._peek()
        if found != character:
            what = f"{found!r}" if found else "the end of the file"
            raise TableError(f"{self._name}:{self.line}: {character!r} is expected, got {what}; the array is broken")
        self._at += 1

    def enter(self, part: str) -> None:
        """Goes to the value of this name in the object that begins here. Arrays before it are skipped by element.

        Raises:
            TableError: there is none; the message lists the names.
        """
        self.expect("{")
        names: list[str] = []
        while self._peek() != "}":
            if names:
                self.expect(",")
                self._peek()
            _, name = self.take(len(names) + 1)
            self.expect(":")
            if name == part:
                return
            names.append(str(name))
            if self._peek() == "[":
                self._at += 1
                number = 0
                while self.next_element(number, is_part=True):
                    number += 1
                    self.take(number)
            else:
                self.take(len(names))
        has = ", ".join(map(repr, names)) or "nothing"
        raise TableError(f"{self._name}: the object has no {part!r}; it has {has}")

    def next_element(self, number: int, is_part: bool = False) -> bool:
        """Goes to the next element; false if the array ends. Behind a part of an object anything may stand."""
        found = self._peek()
        if found == "]":
            self._at += 1
            if not is_part and self._peek():
                raise TableError(
                    f"{self._name}:{self.line}: text behind the end of the array; "
                    'for one object per line set format = "jsonl"'
                )
            return False
        if number:
            self.expect(",")
            if self._peek() == "]":
                raise TableError(f"{self._name}:{self.line}: a comma stands before the end of the array; remove it")
        return True

    def take(self, number: int) -> tuple[str, Any]:
        """The source and the value of the element that begins here.

        Raises:
            TableError: it is no JSON, or over the limit.
        """
        while True:
            size = len(self._window) - self._at
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
                if end < len(self._window) or self._ended:
                    source = self._window[self._at : end]
                    self._at = end
                    self.line += source.count("\n")
                    return source, value
            except (ValueError, RecursionError) as error:
                if self._ended or isinstance(error, RecursionError) or size > LONGEST_LINE:
                    long = f"over {LONGEST_LINE:,} characters"
                    reason = _json_reason(error, self._at) if size <= LONGEST_LINE else long
                    raise TableError(
                        f"{self._name}:{self.line}: row {number} and those behind it cannot be read: {reason}"
                    ) from error
            self._read(max(size, CHUNK_BYTES))

    def _peek(self) -> str:
        while True:
            found = NO_SPACE.search(self._window, self._at)
            begin, self._at = self._at, found.start() if found else len(self._window)
            self.line += self._window.count("\n", begin, self._at)
            if found:
                return found[0]
            if self._ended:
                return ""
            self._read(CHUNK_BYTES)

    def _read(self, size: int) -> None:
        chunk = self._stream.read(size)
        if not self.offset:
            chunk = chunk.removeprefix(UTF8_BOM)
        self.offset += len(chunk)
        self._ended = not chunk
        self._window = self._window[self._at :] + self._decoder.decode(chunk, final=self._ended)
        self._at = 0


def _named(value: Any, names: Sequence[str] | None) -> tuple[Any, str | None]:
    """A list of cells as an object, if the columns have names; or why it is none."""
    if names is None or not isinstance(value, list):
        return value, None
    if len(value) != len(names):
        return value, f"has {len(value)} cells, but columns names {len(names)}"
    return dict(zip(names, value, strict=True)), None


def _reason_against(value: Any, source: str) -> str | None:
    """Why a JSON value is not a row; None if it is one."""
    if not isinstance(value, dict):
        return f"must be an object, got {kind_of(value)}"
    if source.count("[") + source.count("{") > DEEPEST and _depth(value) > DEEPEST:
        return TOO_DEEP
    if "\\ud" in source or "\\uD" in source:
        for name in value:
            if not name.isascii() and any("\ud800" <= one <= "\udfff" for one in name):  # no file can name it
                return f"the column name {name!r} has half of a surrogate pair"
    return None


def _json_reason(error: Exception, start: int = 0) -> str:
    """Why the text that begins at `start` is no JSON."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error.msg.removesuffix(' at')} at character {max(error.pos - start, 0) + 1})"
    return f"has a whole number of more than {sys.get_int_max_str_digits():,} digits"  # nothing else is a ValueError


def _encoding_reason(source: bytes, encoding: str | None) -> str | None:
    """Which column holds bytes that are not UTF-8; None if all are."""
    try:
        source.decode()
    except UnicodeDecodeError as error:
        with suppress(ValueError, RecursionError):
            fields = _DECODER.decode(source.decode("utf-8", "surrogateescape"))
            for name, value in fields.items() if isinstance(fields, dict) else ():
                if isinstance(value, str) and any("\udc80" <= one <= "\udcff" for one in value):
                    return encoding_reason(f"column {name!r}", source[error.start], encoding)
        return encoding_reason("the line", source[error.start], encoding)
    return None


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            inner for one in level if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)
        ]  # fmt: skip
    return deepest
