"""How texts are cut into requests: by number and by bytes, so that neither server nor proxy refuses one as too big."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from polyhead_client.errors import UsageError
from polyhead_client.texts import encode_text

ROW_BYTES = 4  # Triton writes each text's length before it
HEADER_BYTES = 4096  # more than a request's JSON takes


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one request, as UTF-8; `start` is the first one's position among all texts."""

    start: int
    rows: list[bytes]

    def pieces(self, most: int) -> list[Batch]:
        """The same rows in batches of at most so many."""
        return [Batch(self.start + at, self.rows[at : at + most]) for at in range(0, len(self.rows), most)]


class Cutter:
    """Collects rows until a request is full; reads no further ahead than the text at hand."""

    def __init__(self, most_texts: int, most_bytes: int) -> None:
        self._most_texts = most_texts
        self._most_bytes = most_bytes
        self._rows: list[bytes] = []
        self._size = 0
        self._position = 0  # of the next text

    def add(self, text: object) -> Batch | None:
        """Takes a text, and gives the batch that is full by now.

        Raises:
            UsageError: the text cannot be sent, or is alone longer than a request may be.
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
        """The rows that wait for more, if any."""
        rows, self._rows, self._size = self._rows, [], 0
        return Batch(self._position - len(rows), rows) if rows else None


def cut(texts: Iterable[object], most_texts: int, most_bytes: int) -> Iterator[Batch]:
    """Texts as batches; what is wrong with a text, or raised by the iterable, comes after the batches before it."""
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


async def cut_async(texts: AsyncIterable[object], most_texts: int, most_bytes: int) -> AsyncIterator[Batch]:
    """As `cut`, of an asynchronous iterable."""
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
