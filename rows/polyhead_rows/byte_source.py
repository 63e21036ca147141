"""The bytes of an input file, always decompressed, as UTF-8 and with line feeds.

Bytes that are invalid in the encoding become invalid UTF-8, so that the reader can reject only their row.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow

from polyhead_rows.errors import TableError, one_line
from polyhead_rows.place import STDIN, is_pipe, open_bytes, size_of, split_part

HEAD_BYTES = 64 * 2**10
BUFFER_BYTES = 2**18
UTF8_BOM = b"\xef\xbb\xbf"
BOMS = {
    UTF8_BOM: "utf-8",
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
ESCAPE = "polyhead_rows.escape"

READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


class ByteSource:
    """A file that can be opened again and again; a pipe, such as standard input, can be opened once.

    Attributes:
        name: path, URI or ``-``.
        size: of the file on disk, in bytes; 0 if unknown.
        once: whether it is a pipe, which can be read only once.
        head: the first bytes, decompressed.
        encoding: a codec's name; None for UTF-8.
        head_text: the first bytes in UTF-8.
        exact: whether the text is the file's own bytes, so that offsets can be sought.
    """

    def __init__(self, name: str, compression: str | None, encoding: str | None) -> None:
        self.name = name
        self.size = 0 if name == STDIN else size_of(name)
        self.once = name == STDIN or is_pipe(name)
        self._compression = compression
        self._pipe: io.BufferedReader | None = None
        self._file: BinaryIO | None = None  # the file that is being read
        with reading(name, compression):
            if self.once:
                self._pipe = _buffered(compressed(self._open_pipe(), compression, "rb"))
                weakref.finalize(self, self._pipe.detach if name == STDIN else self._pipe.close)
                self.head = self._pipe.peek(HEAD_BYTES)[:HEAD_BYTES]
            else:
                with self.open_undecoded() as stream:
                    self.head = stream.read(HEAD_BYTES)
        found = next((known for bom, known in BOMS.items() if self.head.startswith(bom)), encoding or "utf-8")
        named = codecs.lookup(found).name
        self.encoding = None if named in ("utf-8", "utf-8-sig") else named
        self.head_text = self.head
        if self.encoding is not None:
            with reading(name, self.encoding):
                self.head_text = _transcoder(self.encoding)(self.head)
        self._has_carriage_returns = b"\r" in self.head_text and b"\n" not in self.head_text
        self.exact = compression is None and self.encoding is None and not self.once

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[tuple[io.BufferedReader, Callable[[int], int]]]:
        """The text in UTF-8 from an offset on. Only exact sources have offsets.

        Yields:
            The stream, and a function from bytes of text that were read to the position in the file.
        """
        with self.open_undecoded(offset) as stream:
            file = self._file
            if self.encoding is not None:
                stream = _buffered(_Converted(stream, _transcoder(self.encoding)))
            if self._has_carriage_returns:
                stream = _buffered(_Converted(stream, _line_feeds))
            yield stream, (lambda read: read) if self.exact or file is None else (lambda _: file.tell())

    @contextmanager
    def open_undecoded(self, offset: int = 0) -> Iterator[io.BufferedReader]:
        """The decompressed bytes, as they are."""
        if self.once:
            if self._pipe is None:
                raise TableError(f"{self.name}: can be read once only; write it to a file first")
            stream, self._pipe = self._pipe, None
            yield stream
            return
        with closing(open_bytes(self.name)) as file:
            file.seek(offset)
            self._file = file
            if self._compression is None and isinstance(file, io.BufferedReader):
                yield file
            else:
                with closing(_buffered(compressed(file, self._compression, "rb"))) as stream:
                    yield stream

    @contextmanager
    def open_head(self) -> Iterator[BinaryIO]:
        """The text from its beginning. For a pipe: only its first bytes, which can be read again later."""
        if self.once:
            yield io.BytesIO(_line_feeds(self.head_text) if self._has_carriage_returns else self.head_text)
        else:
            with self.open() as (stream, _):
                yield stream

    def _open_pipe(self) -> Any:
        if self.name == STDIN:
            if sys.stdin is None:
                raise TableError("-: standard input is closed")
            return getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        pipe = Path(split_part(self.name)[0]).open("rb", buffering=0)  # noqa: SIM115 - read until this source is gone
        weakref.finalize(self, pipe.close)
        return pipe


@contextmanager
def reading(name: str, form: str | None = None) -> Iterator[None]:
    """Turns what libraries raise while a file is read into a TableError."""
    try:
        yield
    except READ_ERRORS as error:
        kind = f" as {form}" if form else ""
        raise TableError(f"{name}: cannot be read{kind} ({one_line(error)})") from error


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Replaces undecodable bytes by lone surrogates. `_transcoder` turns these into invalid UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(ESCAPE, _escape)


def _transcoder(encoding: str) -> Callable[[bytes], bytes]:
    """Converts chunk after chunk to UTF-8; an empty chunk is the last one."""
    decoder = codecs.getincrementaldecoder(encoding)(ESCAPE)
    return lambda chunk: decoder.decode(chunk, final=not chunk).encode("utf-8", "surrogatepass")


def _line_feeds(chunk: bytes) -> bytes:
    return chunk.replace(b"\r", b"\n")


def _buffered(raw: Any) -> io.BufferedReader:
    return io.BufferedReader(raw, BUFFER_BYTES)


def compressed(file: Any, compression: str | None, mode: Literal["rb", "wb"]) -> Any:
    """The file as it is without its compression; closing it leaves the file open."""
    match compression:
        case "gzip":
            return gzip.GzipFile("", mode, fileobj=file, mtime=0)  # the same rows, the same bytes
        case "bz2":
            return bz2.BZ2File(file, mode)
        case "xz":
            return lzma.LZMAFile(file, mode)
        case "zstd":
            stream = pyarrow.CompressedInputStream if mode == "rb" else pyarrow.CompressedOutputStream
            return stream(pyarrow.PythonFile(file, mode), "zstd")
        case _:
            return file


class _Converted(io.RawIOBase):
    """A stream whose chunks go through a function; the last one is empty. It does not close what it reads."""

    def __init__(self, stream: BinaryIO, convert: Callable[[bytes], bytes]) -> None:
        self._stream = stream
        self._convert = convert
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk: bytes | None = None
        while not self._waiting and chunk != b"":
            chunk = self._stream.read(HEAD_BYTES)
            self._waiting = self._convert(chunk)
        size = min(len(buffer), len(self._waiting))
        buffer[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size
