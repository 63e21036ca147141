"""CSV and TSV (RFC 4180): cells are text and are not changed.

If a row cannot be read, only its first line is lost: the lines after it are read as rows. `_Feed` keeps the lines of
one row so that they can be read again. Each line of a file is read at most three times.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence

from polyhead_rows.byte_source import ByteSource, reading
from polyhead_rows.errors import TableError, one_line
from polyhead_rows.lines import LONGEST_LINE, SHOWN, Lines, LongLine, TextTableFile, encoding_reason, shown
from polyhead_rows.table import ReadOptions, Row, Start

LINE_COST = 64  # bytes that a short line takes in memory besides its characters
CARRIAGE_RETURN = "has a carriage return in a cell without quotes; put double quotes around the cell"
EXCEL_DELIMITER = re.compile(
    r'\ufeff?"?sep=([^"\r\n])"?(?:[\r\n]|$)', re.IGNORECASE
)  # a first line that Excel understands
JSON_ROW = re.compile(rb'\s*(\[)?\s*\{\s*"')
OTHERS = {";": 'delimiter = ";"', "\t": 'format = "tsv"', "|": 'delimiter = "|"', ",": 'delimiter = ","'}


class DelimitedFile(TextTableFile):
    """A CSV or TSV file."""

    def __init__(self, source: ByteSource, options: ReadOptions, kind: str) -> None:
        super().__init__(source)
        self.format = kind
        if csv.field_size_limit() < 2 * LONGEST_LINE:
            csv.field_size_limit(2 * LONGEST_LINE)  # of the process; texts are longer than the default of 128 KiB
        self._names: list[str] = []
        said = EXCEL_DELIMITER.match(source.head_text[:SHOWN].decode("utf-8", "ignore"))
        self._delimiter = options.delimiter or (said[1] if said else "\t" if kind == "tsv" else ",")
        with reading(self.name), source.open_head() as stream:
            lines = Lines(stream, Start())
            if said:
                next(lines)
            feed = _Feed(lines, self._delimiter, 0)
            self._names = list(options.columns) if options.columns is not None else self._read_header(feed)
            self._first = Start(1, feed.line, feed.offset)
        self.set_columns(self._names)

    def rows(self, start: Start | None = None, columns: Sequence[str] | None = None) -> Generator[Row]:
        """All rows from `start` on."""
        wanted = (start or Start()).number
        begin = start if start is not None and self.can_seek and wanted > 1 else self._first
        with reading(self.name), self._source.open(begin.offset if self.can_seek else 0) as (stream, position):
            feed = _Feed(Lines(stream, begin if self.can_seek else Start()), self._delimiter, begin.single_until)
            while not self.can_seek and feed.line < self._first.line:
                feed.record()  # the header, and what is before
            number, names, width = begin.number, self._names, len(self._names)
            while (record := feed.record()) is not None:
                values, reason, line, raw = record
                if reason is None:
                    if len(values) != width:
                        if len(values) == 1 and values[0].isspace():
                            continue  # a blank line is no row
                        if len(values) < width or any(values[width:]):
                            reason = self._width_reason(len(values))
                        else:
                            values = values[:width]  # Excel's empty columns
                    if feed.stray and reason is None:
                        reason = self._encoding_reason(values)
                if number >= wanted:
                    end, fields = position(feed.offset), None
                    if reason is None:
                        fields = dict(zip(names, values, strict=True))
                        for name in self.doubled:
                            del fields[name]
                    source = None if reason is None else shown(raw)
                    yield Row(number, line, fields, reason, end, source, feed.line, feed.single_until)
                number += 1

    def _read_header(self, feed: _Feed) -> list[str]:
        names = [""]
        while len(names) == 1 and not names[0].strip():  # a blank line
            record = feed.record()
            if record is None:
                raise TableError(f"{self.name}: is empty; the first line must name the columns")
            names, reason, _, raw = record
            if (json := JSON_ROW.match(raw)) is not None:
                looks = 'a JSON array: set format = "json"' if json[1] else 'JSON lines: set format = "jsonl"'
                raise TableError(f"{self.name}: looks like {looks}")
            if reason is None and feed.stray:
                raise TableError(f"{self.name}: the first line: {self._encoding_reason(names)}")
            if reason is not None:
                raise TableError(f"{self.name}: the first line must name the columns, but it {reason}")
        while names and not names[-1].strip():
            names.pop()
        if not names:
            raise TableError(f"{self.name}: the first line names no column; remove it")
        found = next((do for other, do in OTHERS.items() if other != self._delimiter and other in names[0]), None)
        if len(names) == 1 and self.format == "tsv":
            self.hint = "; the first line has one column only: is it tabs that stand between its cells?"
        elif len(names) == 1 and found is not None:
            self.hint = f"; the first line has one column only, {one_line(repr(names[0]))}: set {found}"
        return names

    def _width_reason(self, cells: int) -> str:
        width = len(self._names)
        what = f"has {cells} cell{'s' * (cells != 1)}, but the table has {width} column{'s' * (width != 1)}"
        if cells > width:
            what += f"; put double quotes around a cell that holds {self._delimiter!r}"
        return what

    def _encoding_reason(self, values: list[str]) -> str | None:
        for place, value in enumerate(values):
            for one in value:
                if "\udc80" <= one <= "\udcff":
                    name = f"column {self._names[place]!r}" if self._names else f"column {place + 1}"
                    return encoding_reason(name, ord(one) - 0xDC00, self._source.encoding)
        return None


class _Feed:
    """Records of a file, and the lines that each has.

    Attributes:
        lines: of the file.
        line: the number of the line that comes next.
        offset: bytes before it.
        stray: whether the last record holds bytes that are not UTF-8, as lone surrogates.
        single_until: up to this offset a quote must close on its line.
    """

    def __init__(self, lines: Lines, delimiter: str, single_until: int) -> None:
        self.lines = lines
        self.line = lines.line
        self.offset = lines.offset
        self.stray = False
        self.single_until = single_until
        self._delimiter = delimiter
        self._again: deque[bytes] = deque()  # lines that were read and given back
        self._behind = 0  # bytes of those
        self._taken: list[bytes] = []  # of this record
        self._size = 0
        self._first: bytes | None = None
        self._single = False
        self._parser = csv.reader(self, delimiter=delimiter, strict=True)

    def record(self) -> tuple[list[str], str | None, int, bytes] | None:
        """The next cells, or why they cannot be read; the line number; its source. None at the end of the file."""
        while True:
            at, begin = self.line, self.offset
            self.stray = False
            try:
                line = self._take()
            except StopIteration:
                return None
            if isinstance(line, LongLine):
                return [], line.reason, at, line
            if b'"' not in line:
                text = self._decode(line).rstrip("\r\n")
                if "\r" in text:
                    return [], CARRIAGE_RETURN, at, line
                if text:
                    return text.split(self._delimiter), None, at, line
                continue  # a blank line is no row
            self._first, self._taken, self._size = line, [line], len(line)
            self._single = begin < self.single_until
            try:
                return next(self._parser), None, at, line
            except (csv.Error, StopIteration) as error:
                return [], self._give_back(error, at), at, line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next line for the parser."""
        if self._first is not None:
            line, self._first = self._first, None
            return self._decode(line)
        if self._single or self._size > LONGEST_LINE:
            raise StopIteration
        line = self._take()
        self._taken.append(line)
        self._size += len(line) + LINE_COST
        if isinstance(line, LongLine):
            raise StopIteration
        return self._decode(line)

    def _take(self) -> bytes:
        if self._again:
            line = self._again.popleft()
            self._behind -= _size(line)
        else:
            line = next(self.lines)
        self.line += 1
        self.offset = self.lines.offset - self._behind
        return line

    def _decode(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.stray = True
            return line.decode("utf-8", "surrogateescape")

    def _give_back(self, error: Exception, at: int) -> str:
        """Only the first line is lost; the others are read again."""
        rest = self._taken[1:]
        ended = str(error) == "unexpected end of data"
        if not rest and ended:
            return 'opens a quote that does not close; close it, or write it twice ("") inside a quoted cell'
        if not rest and "new-line" in str(error):
            return CARRIAGE_RETURN
        if not rest:
            return f'has a stray quote ({one_line(error)}); a quote inside a quoted cell is written twice: ""'
        last = self.line - 1
        end = self.offset if ended else self.offset - _size(rest[-1])
        self.single_until = max(self.single_until, end)
        self._again.extendleft(reversed(rest))
        self._behind += sum(map(_size, rest))
        self.line -= len(rest)
        self.offset = self.lines.offset - self._behind
        return (
            f'opens a quote that does not close properly up to line {last}; close it, or write it twice ("") inside a '
            f"quoted cell; the lines from {at + 1} on are read as rows"
        )


def _size(line: bytes) -> int:
    return line.size if isinstance(line, LongLine) else len(line)
