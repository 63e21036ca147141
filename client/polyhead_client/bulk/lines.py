"""Lines of a file of any size: none longer than a limit is held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

LONGEST_LINE = 16 * 2**20  # bytes
BOM = b"\xef\xbb\xbf"


class LongLineError(ValueError):
    """A line is too long; the next one can be read."""


class Lines:
    """An iterator of lines with their ends; it goes on after a line that was too long.

    Attributes:
        number: of the last line, from 1.
        offset: bytes read so far.
    """

    def __init__(self, file: BinaryIO, longest: int = LONGEST_LINE) -> None:
        self.number = 0
        self.offset = 0
        self._file = file
        self._longest = longest

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > self._longest and not line.endswith(b"\n"):
            while (rest := self._read()) and not rest.endswith(b"\n"):
                pass
            raise LongLineError(f"the line has more than {self._longest:,} bytes")
        return line.removeprefix(BOM) if self.number == 1 else line

    def _read(self) -> bytes:
        line = self._file.readline(self._longest + 1)
        self.offset += len(line)
        return line
