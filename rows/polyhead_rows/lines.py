"""Lines of a file of any size, and the reader of plain lines. A line over the limit is never held in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO

from polyhead_rows.byte_source import UTF8_BOM, ByteSource, reading
from polyhead_rows.table import Row, Start, TableFile

LONGEST_LINE = 16 * 2**20  # bytes; also of a CSV row that has several lines
SHOWN = 200


class LongLine(bytes):
    """The beginning of a line that is over the limit.

    Attributes:
        size: of the whole line in bytes.
    """

    size: int

    @property
    def reason(self) -> str:
        """Why it is not read."""
        return f"the line has {self.size:,} bytes; at most {LONGEST_LINE:,} are read"


class Lines:
    """An iterator of lines with their ends, and how far it is.

    Attributes:
        line: the number of the next line.
        offset: bytes before it.
    """

    def __init__(self, stream: BinaryIO, start: Start) -> None:
        self.line = start.line
        self.offset = start.offset
        self._readline = stream.readline

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        size = len(line)
        if size > LONGEST_LINE and not line.endswith(b"\n"):
            line = LongLine(line[:SHOWN])
            while (rest := self._readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                size += len(rest)
            line.size = size = size + len(rest)
        elif self.offset == 0:
            line = line.removeprefix(UTF8_BOM)
        self.line += 1
        self.offset += size
        return line


def encoding_reason(what: str, byte: int, encoding: str | None) -> str:
    """Why a line or a cell could not be decoded, and what to do."""
    if encoding is not None:
        return f"{what} is not {encoding}"
    return f'{what} is not UTF-8: it has byte 0x{byte:02x}; for a text of Windows or Excel set encoding = "cp1252"'


def shown(line: bytes) -> str:
    """A line that could not be read, shortened and printable."""
    text = line[: 4 * SHOWN].decode("utf-8", "backslashreplace").rstrip("\r\n")
    text = "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text[:SHOWN])
    return text + ("…" if len(line) > SHOWN else "")


class TextTableFile(TableFile):
    """Base class for files of text."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source.name)
        self.total = source.size
        self.can_seek = source.exact
        self._source = source


class LineTableFile(TextTableFile):
    """Base class for files whose lines are rows."""

    has_blank_rows = False

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Generator[Row]:
        """All rows from `start` on."""
        start = start or Start()
        begin = start if self.can_seek else Start()
        number, first, skips_blank = begin.number, start.number, not self.has_blank_rows
        with reading(self.name), self._source.open(begin.offset) as (stream, position):
            lines = Lines(stream, begin)
            for line in lines:
                if skips_blank and (line.isspace() or not line):
                    continue
                if number >= first:
                    next_line, end = lines.line, position(lines.offset)
                    fields, reason = (None, line.reason) if isinstance(line, LongLine) else self._fields(line)
                    raw = None if reason is None else shown(line)
                    yield Row(number, next_line - 1, fields, reason, end, raw, next_line)
                number += 1

    def _fields(self, line: bytes) -> tuple[dict[str, Any] | None, str | None]:
        """The row, or the reason why it cannot be read."""
        raise NotImplementedError


class LinesFile(LineTableFile):
    """Plain lines: each one is a text, in the column ``text``. A blank line is a row too."""

    format = "lines"
    columns = ["text"]  # noqa: RUF012 - nobody changes it
    has_blank_rows = True

    def _fields(self, line: bytes) -> tuple[dict[str, Any] | None, str | None]:
        try:
            return {"text": line.rstrip(b"\r\n").decode()}, None
        except UnicodeDecodeError as error:
            return None, encoding_reason("the line", line[error.start], self._source.encoding)
