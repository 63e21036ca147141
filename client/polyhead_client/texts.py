"""Texts as callers hold them (lists, pandas, Arrow, NumPy, iterables) to UTF-8 rows; complaints have a position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol

from polyhead_client.errors import UsageError

COLUMNAR = ("pandas", "pyarrow", "numpy")  # libraries whose columns of texts are taken as lists
ARROW_SLICE = 4096  # rows of an Arrow column that become Python objects at a time


class ArrayOfTexts(Protocol):
    """A pandas Series or NumPy array, which need not be installed."""

    def tolist(self) -> list[Any]:
        """Its values."""


class ArrowOfTexts(Protocol):
    """A pyarrow Array or ChunkedArray, which need not be installed."""

    def to_pylist(self) -> list[Any]:
        """Its values."""


Texts = list[str] | tuple[str, ...] | ArrayOfTexts | ArrowOfTexts


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
    """One text after the other, without holding all of them as Python objects.

    Raises:
        UsageError: it cannot be iterated, or is itself a text.
    """
    if isinstance(texts, str | bytes | bytearray) or not isinstance(texts, Iterable):
        raise UsageError(f"texts must be an iterable of str, got {type(texts).__name__}")
    return _iterate_arrow(texts) if _library(texts) == "pyarrow" and _is_column(texts) else iter(texts)


def encode_text(text: object, position: int = 0) -> bytes:
    """UTF-8 bytes of a text.

    Raises:
        UsageError: it is no text or has no UTF-8 form; the message has its position.
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


def _iterate_arrow(texts: Any) -> Iterator[object]:
    for start in range(0, len(texts), ARROW_SLICE):
        yield from texts.slice(start, ARROW_SLICE).to_pylist()


def _library(texts: object) -> str:
    return type(texts).__module__.partition(".")[0]


def _is_column(texts: Any) -> bool:
    if _library(texts) not in COLUMNAR or not (isinstance(texts, Iterable) and isinstance(texts, Sized)):
        return False
    # Of a table it would be the column names that are iterated, or whole rows.
    return getattr(texts, "ndim", 1) == 1 and not hasattr(texts, "columns")


def _is_null(value: object) -> bool:
    # NaN is the one value that differs from itself; pandas' NA and NaT say so by their names.
    return value is None or isinstance(value, float) or type(value).__name__ in ("NAType", "NaTType")
