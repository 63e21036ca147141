"""JSON lines (one object per line) and a JSON array of objects. An array is parsed piece by piece, never as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from polyhead_rows.byte_source import ByteSource, reading
from polyhead_rows.errors import TableError, one_line
from polyhead_rows.lines import LONGEST_LINE, Lines, LongLine, encoding_reason, shown
from polyhead_rows.table import Row, Start, TableFile

DEEPEST = 100  # brackets within brackets
_CONSTANTS = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}
_DECODER = json.JSONDecoder(parse_constant=_CONSTANTS.__getitem__)
_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}


class JsonLinesFile(TableFile):
    """One JSON object per line. Blank lines are no rows. NaN, which JSON does not have, is null."""

    format = "jsonl"

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source.name)
        self.total = source.size
        self.can_seek = source.exact
        self._source = source

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows from `start` on."""
        begin = start if start is not None and self.can_seek else Start()
        first = start.number if start is not None else 1
        decode, exact, position = _DECODER.decode, self._source.exact, self._source.position
        number = begin.number
        with reading(self.name), self._source.open(begin.offset) as stream:
            lines = Lines(stream, begin)
            for line in lines:
                if line.isspace() or not line:
                    continue
                if number >= first:
                    at = lines.line
                    end = lines.offset if exact else position(lines.offset)
                    try:
                        fields = decode(line.decode())
                    except (ValueError, RecursionError) as error:
                        yield Row(number, at - 1, None, self._reason(line, error), end, shown(line), at)
                    else:
                        reason = reason_against(fields, line.count(b"[") + line.count(b"{"))
                        if reason is None:
                            yield Row(number, at - 1, fields, None, end, None, at)
                        else:
                            yield Row(number, at - 1, None, reason, end, shown(line), at)
                number += 1

    def _reason(self, line: bytes, error: Exception) -> str:
        if isinstance(line, LongLine):
            return line.reason
        if isinstance(error, UnicodeDecodeError):
            return encoding_reason(_broken_column(line), line[error.start], self._source.encoding)
        return json_reason(error)


class JsonArrayFile(TableFile):
    """A JSON array of objects, one per row."""

    format = "json"

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source.name)
        self.total = source.size
        self._source = source

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows from `start` on; what is before it is read again.

        Raises:
            TableError: what stands there is no array, or the array is broken, so that its rest cannot be read.
        """
        first = start.number if start is not None else 1
        with reading(self.name), self._source.open() as stream:
            text = _JsonText(self.name, stream)
            text.expect("[")
            number = 0
            while text.next_element(number):
                number += 1
                line = text.line
                source, value = text.take()
                if number < first:
                    continue
                end = self._source.position(text.offset)
                reason = reason_against(value, source.count("[") + source.count("{"))
                if reason is None and not source.isascii():
                    reason = self._encoding_reason(source)
                if reason is None:
                    yield Row(number, line, value, None, end, None, text.line)
                else:
                    yield Row(number, line, None, reason, end, shown(_bytes(source)), text.line)

    def _encoding_reason(self, source: str) -> str | None:
        data = _bytes(source)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return encoding_reason(_broken_column(data), data[error.start], self._source.encoding)
        return None


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
        self._rest = b""  # of a character that the last chunk cut
        self._ended = False

    def expect(self, character: str) -> None:
        """Passes the character.

        Raises:
            TableError: another one stands there.
        """
        found = self._peek()
        if found != character:
            raise TableError(f"{self._name}:{self.line}: {character!r} is expected, got {found!r}; the file must hold one array of objects")
        self._at += 1

    def next_element(self, number: int) -> bool:
        """Goes to the next element; false if the array ends."""
        found = self._peek()
        if found == "]":
            self._at += 1
            if self._peek():
                raise TableError(f'{self._name}:{self.line}: text behind the end of the array; for one object per line set format = "jsonl"')
            return False
        if number:
            self.expect(",")
            self._peek()
        return True

    def take(self) -> tuple[str, Any]:
        """The source and the value of the element that begins here.

        Raises:
            TableError: it is no JSON, or over the limit.
        """
        while True:
            error: Exception | None = None
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
                if end < len(self._window) or self._ended:
                    source = self._window[self._at : end]
                    self._at = end
                    self.line += source.count("\n")
                    return source, value
            except (ValueError, RecursionError) as caught:
                error = caught
            size = len(self._window) - self._at
            if error is not None and (self._ended or isinstance(error, RecursionError) or size > LONGEST_LINE):
                reason = json_reason(error) if size <= LONGEST_LINE else f"over {LONGEST_LINE:,} characters"
                raise TableError(f"{self._name}:{self.line}: this row cannot be read, nor those behind it: {reason}") from error
            self._read(max(size, 2**18))

    def _peek(self) -> str:
        while True:
            window, at = self._window, self._at
            while at < len(window) and window[at] in " \t\r\n":
                self.line += window[at] == "\n"
                at += 1
            self._at = at
            if at < len(window):
                return window[at]
            if self._ended:
                return ""
            self._read(2**18)

    def _read(self, size: int) -> None:
        chunk = self._stream.read(size)
        if not self.offset:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")
        self.offset += len(chunk)
        self._ended = not chunk
        data = self._rest + chunk
        cut = len(data) if self._ended else _whole_characters(data)
        self._rest = data[cut:]
        self._window = self._window[self._at :] + data[:cut].decode("utf-8", "surrogateescape")
        self._at = 0


def reason_against(value: Any, brackets: int) -> str | None:
    """Why a JSON value is no row; None if it is one."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            return 'must be an object, got an array: one object per line is wanted; for a file that is an array set format = "json" or name it .json'
        return f"must be an object, got {_NAMES.get(type(value), 'null')}"
    if brackets > DEEPEST and _depth(value) > DEEPEST:
        return f"is nested deeper than {DEEPEST} levels"
    return None


def json_reason(error: Exception) -> str:
    """Why a text is no JSON."""
    if isinstance(error, RecursionError):
        return f"is nested deeper than {DEEPEST} levels"
    return f"is not JSON: {one_line(error)}"


def _broken_column(line: bytes) -> str:
    """Which column holds bytes that are not UTF-8."""
    try:
        fields = _DECODER.decode(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return "the line"
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if isinstance(value, str) and any("\udc80" <= one <= "\udcff" for one in value):
            return f"column {name!r}"
    return "the line"


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            inner for one in level if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)
        ]  # fmt: skip
    return deepest


def _bytes(source: str) -> bytes:
    return source.encode("utf-8", "surrogateescape")


def _whole_characters(data: bytes) -> int:
    """How many of the bytes do not belong to a UTF-8 character that is cut at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
        if byte < 0x80:
            break
    return len(data)
