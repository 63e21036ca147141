"""The bytes of an input file: decompressed, in UTF-8 and with line feeds, whatever the file has.

Bytes that the encoding does not know stay invalid UTF-8, so that the reader can set aside their row alone.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, BinaryIO, cast

import pyarrow

from polyhead_rows.errors import TableError, one_line
from polyhead_rows.place import STDIN, open_bytes, size_of

HEAD_BYTES = 64 * 2**10
BUFFER_BYTES = 2**18
UTF8_BOM = b"\xef\xbb\xbf"
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


class ByteSource:
    """A file that can be opened again and again; standard input can be opened once.

    Attributes:
        name: path, URI or ``-``.
        head: the first bytes, decompressed but not yet converted to UTF-8.
        encoding: a codec's name; None for UTF-8.
        size: of the file in bytes, as it lies there; 0 if unknown.
        exact: whether the bytes are read as they lie there, so that offsets can be sought.
    """

    def __init__(self, name: str, compression: str | None, encoding: str | None) -> None:
        self.name = name
        self.size = 0 if name == STDIN else size_of(name)
        self._compression = compression
        self._counted: _Counted | None = None
        self._stdin: io.BufferedReader | None = None
        if name == STDIN:
            self._counted = _Counted(cast(Any, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)))
            self._stdin = io.BufferedReader(self._counted, HEAD_BYTES)
            self.head = self._stdin.peek(HEAD_BYTES)[:HEAD_BYTES]
        else:
            with reading(name, compression), self.open_undecoded() as stream:
                self.head = stream.read(HEAD_BYTES)
        found = next((known for bom, known in BOMS.items() if self.head.startswith(bom)), None)
        named = codecs.lookup(encoding).name if encoding is not None else found
        self.encoding = None if named in (None, "utf-8", "utf-8-sig") else named
        text = self._decoded_head()
        self.has_carriage_returns = b"\r" in text and b"\n" not in text
        self.exact = compression is None and self.encoding is None and name != STDIN

    @contextmanager
    def open_undecoded(self, offset: int = 0) -> Iterator[io.BufferedReader]:
        """The decompressed bytes, as they are."""
        if self.name == STDIN:
            if self._stdin is None:
                raise TableError("-: standard input can be read once only; write it to a file first")
            stream, self._stdin = self._stdin, None
            yield stream
            return
        with ExitStack() as opened:
            file = opened.enter_context(closing(open_bytes(self.name)))
            if offset:
                file.seek(offset)
            if self._compression is None and isinstance(file, io.BufferedReader):
                yield file
                return
            self._counted = opened.enter_context(closing(_Counted(file)))
            raw = opened.enter_context(closing(_decompress(self._counted, self._compression)))
            yield opened.enter_context(closing(io.BufferedReader(cast(Any, raw), BUFFER_BYTES)))

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[io.BufferedReader]:
        """The text as UTF-8; `offset` is for exact sources."""
        with ExitStack() as opened:
            stream = opened.enter_context(self.open_undecoded(offset))
            if self.encoding is not None:
                raw = opened.enter_context(closing(_Transcoded(stream, self.encoding)))
                stream = opened.enter_context(closing(io.BufferedReader(raw, BUFFER_BYTES)))
            if self.has_carriage_returns:
                lines = opened.enter_context(closing(_LineFeeds(stream)))
                stream = opened.enter_context(closing(io.BufferedReader(lines, BUFFER_BYTES)))
            yield stream

    def position(self, offset: int) -> int:
        """How far the file itself is read, once `offset` bytes of its text are."""
        return offset if self._counted is None or self.exact else self._counted.count

    def text_head(self) -> str:
        """The first characters; what cannot be decoded is replaced."""
        return self._decoded_head().removeprefix(UTF8_BOM).decode("utf-8", "replace")

    def _decoded_head(self) -> bytes:
        return _to_utf8(codecs.getincrementaldecoder(self.encoding)(ESCAPE).decode(self.head)) if self.encoding else self.head


@contextmanager
def reading(name: str, compression: str | None = None) -> Iterator[None]:
    """Turns what libraries raise while a file is read into a TableError."""
    try:
        yield
    except READ_ERRORS as error:
        kind = f" as {compression}" if compression else ""
        raise TableError(f"{name}: cannot be read{kind} to its end ({one_line(error)})") from error


ESCAPE = "polyhead_rows.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Stands lone surrogates for bytes that are no text; `_to_utf8` makes invalid UTF-8 of them."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(ESCAPE, _escape)


def _to_utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decompress(raw: Any, compression: str | None) -> Any:
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=raw, mode="rb")
        case "bz2":
            return bz2.BZ2File(raw)
        case "xz":
            return lzma.LZMAFile(raw)
        case "zstd":
            return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        case _:
            return raw


class _Counted(io.RawIOBase):
    """Counts the bytes that are read. It does not close what it reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = cast(Any, self._file).readinto(buffer) or 0
        self.count += size
        return int(size)


class _Transcoded(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(ESCAPE)
        self._waiting = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            chunk = self._stream.read(HEAD_BYTES)
            self._waiting = memoryview(_to_utf8(self._decoder.decode(chunk, final=not chunk)))
            if not chunk:
                break
        size = min(len(buffer), len(self._waiting))
        buffer[:size] = self._waiting[:size]
        self._waiting = self._waiting[size:]
        return size


class _LineFeeds(io.RawIOBase):
    """Line feeds in place of carriage returns, one byte for one byte."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(chunk)] = chunk
        return len(chunk)
