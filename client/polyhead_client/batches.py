"""Texts to requests: texts as callers hold them become UTF-8 rows, and rows become batches that one request can carry.

Errors name the position of the text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from polyhead_client.errors import UsageError

ARROW_SLICE = 4096  # rows of an Arrow column that become Python objects at a time
ROW_BYTES = 4  # Triton writes the length of each text before it
HEADER_BYTES = 4096  # more than the JSON of a request takes
LONGEST_REQUEST = 16 * 2**20  # bytes; reverse proxies commonly accept this much


class ArrayOfTexts(Protocol):
    """A pandas Series or NumPy array; neither library need be installed."""

    @abstractmethod
    def tolist(self) -> list[Any]: ...


class ArrowOfTexts(Protocol):
    """A pyarrow Array or ChunkedArray; the library need not be installed."""

    @abstractmethod
    def to_pylist(self) -> list[Any]: ...


class TableOfFields(Protocol):
    """A pandas DataFrame; the library need not be installed."""

    @abstractmethod
    def to_dict(self, orient: Any) -> Any: ...


Fields = dict[str, Any]  # one text, as an object of the model's fields
Texts = (
    list[str]
    | list[Fields]
    | list[str | Fields]
    | tuple[str | Fields, ...]
    | ArrayOfTexts
    | ArrowOfTexts
    | TableOfFields
)
Batch = list[bytes]  # the texts of one request, as UTF-8


def as_list(texts: Any) -> Sequence[object]:
    """A finite collection of texts as a sequence.

    Raises:
        UsageError: it is something else, such as a str, a set or a table.
    """
    if isinstance(texts, Sequence) and not isinstance(texts, str | bytes | bytearray):
        return texts
    if _is_column(texts):
        return list(iterate(texts))
    kind = type(texts).__name__
    raise UsageError(f"texts must be a list of str, got {kind}; for an iterable use stream()")


def iterate(texts: Any) -> Iterator[object]:
    """Yields the texts one by one; an Arrow column never becomes one large list.

    Raises:
        UsageError: it cannot be iterated, or is itself a text.
    """
    if isinstance(texts, str | bytes | bytearray) or not isinstance(texts, Iterable):
        raise UsageError(f"texts must be an iterable of str, got {type(texts).__name__}")
    column: Any = texts
    if not (_is_column(column) and hasattr(column, "to_pylist")):
        return iter(column)
    slices = (column.slice(start, ARROW_SLICE) for start in range(0, len(column), ARROW_SLICE))
    return chain.from_iterable(part.to_pylist() for part in slices)


def _is_column(texts: Any) -> bool:
    if not hasattr(texts, "tolist") and not hasattr(texts, "to_pylist"):
        return False
    # Iterating a table would give its column names or whole rows.
    return getattr(texts, "ndim", 1) == 1 and not hasattr(texts, "columns")


def encode_text(text: object, position: int = 0) -> bytes:
    """UTF-8 bytes of a text.

    Raises:
        UsageError: it is not a str or has no UTF-8 form; the message has its position.
    """
    if not isinstance(text, str):
        if _is_null(text):
            raise UsageError(f"text {position} is missing ({text!r}); drop or fill missing values")
        kind = type(text).__name__
        raise UsageError(f"text {position} must be a str, got {kind}; decode bytes, drop missing values")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UsageError(
            f"text {position} has a lone surrogate (U+{code:04X}) at character {error.start}; "
            "it has no UTF-8 form: read the text with errors='replace'"
        ) from error


def _is_null(value: object) -> bool:
    # NaN is a float. pandas' NA and NaT are recognised by the names of their classes.
    return value is None or isinstance(value, float) or type(value).__name__ in ("NAType", "NaTType")


class Cutter:
    """Collects rows until a request is full, by number or by bytes; never reads ahead of the current text."""

    def __init__(self, most_texts: int, most_bytes: int) -> None:
        self._most_texts = most_texts
        self._most_bytes = most_bytes
        self._rows: Batch = []
        self._size = 0
        self._position = 0  # of the next text

    def add(self, text: object) -> Batch | None:
        """Adds a text; returns a batch if one is full now.

        Raises:
            UsageError: the text cannot be sent, or is longer than a whole request may be.
        """
        row = encode_text(text, self._position)
        room = self._most_bytes - HEADER_BYTES
        size = len(row) + ROW_BYTES
        if size > room:
            raise UsageError(
                f"text {self._position} has {len(row):,} bytes, and a request at most {self._most_bytes:,}; "
                "cut it (the model reads its beginning only) or raise max_request_bytes"
            )
        full = self.rest() if self._size + size > room else None
        self._rows.append(row)
        self._size += size
        self._position += 1
        return full or (self.rest() if len(self._rows) == self._most_texts else None)

    def rest(self) -> Batch | None:
        """The rows that are not yet in a batch, if any."""
        rows, self._rows, self._size = self._rows, [], 0
        return rows or None


def cut(texts: Iterable[object], most_texts: int, most_bytes: int) -> Iterator[Batch]:
    """Yields texts as batches. An error of a text or of the iterable is raised after the batches before it."""
    cutter = Cutter(most_texts, most_bytes)
    try:
        for text in texts:
            if (full := cutter.add(text)) is not None:
                yield full
    except Exception:
        if (rest := cutter.rest()) is not None:
            yield rest
        raise
    if (rest := cutter.rest()) is not None:
        yield rest


async def cut_async(
    texts: Iterable[object] | AsyncIterable[object], most_texts: int, most_bytes: int
) -> AsyncIterator[Batch]:
    """Like `cut`; also for asynchronous iterables."""
    if not isinstance(texts, AsyncIterable):
        for batch in cut(texts, most_texts, most_bytes):
            yield batch
        return
    cutter = Cutter(most_texts, most_bytes)
    try:
        async for text in texts:
            if (full := cutter.add(text)) is not None:
                yield full
    except Exception:
        if (rest := cutter.rest()) is not None:
            yield rest
        raise
    if (rest := cutter.rest()) is not None:
        yield rest
