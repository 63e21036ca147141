"""The partition: consecutive rows of one file that are read, scored and written as one task, cut by tokens.

Cutting reads texts but does not tokenize them: a text counts its bytes over the bytes a token of a sample, at most the
model's ``max_length``. What a partition costs is so bounded whatever the lengths of its texts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

PARTITION_BYTES = 64 << 20  # of rows as they lie in the file: bounds memory where other columns are large


class Partition(BaseModel):
    """Consecutive rows of one file.

    Attributes:
        file: as it was found, path or URI.
        first_row: its place in the file, counted from 0.
        start: byte at which it begins; 0 where rows have no place in bytes (Parquet).
        size: in bytes.
        tokens: estimated.
        number: its place among all partitions; names the output file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    first_row: int
    rows: int
    start: int
    size: int
    tokens: int
    number: int = 0

    @property
    def name(self) -> str:
        """The output's name without its suffix."""
        return f"part-{self.number:06d}"


class RowSize(NamedTuple):
    """How large a row is: its text, and where in the file it begins and ends (or, in Parquet, 0 and its mean size)."""

    text_bytes: int
    start: int
    end: int


class Limits(BaseModel):
    """What a partition may hold, and what a text counts.

    Attributes:
        tokens: from which on a partition takes no further row.
        max_length: tokens of a text beyond are not read.
        bytes_per_token: in texts of this data and tokens of this model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int
    max_length: int
    bytes_per_token: float

    def estimate(self, text_bytes: int) -> int:
        """Tokens that the model will read of a text; a row counts at least one."""
        return max(1, min(self.max_length, math.ceil(text_bytes / self.bytes_per_token)))


def cut(file: str, rows: Iterable[RowSize], limits: Limits) -> Iterator[Partition]:
    """Partitions of a file, in order; each row is in one. A row that alone exceeds the limits is one of its own."""
    first = count = tokens = start = size = 0
    end = 0
    for row in rows:
        more = limits.estimate(row.text_bytes)
        if count and (tokens + more > limits.tokens or size + row.end - row.start > PARTITION_BYTES):
            yield Partition(file=file, first_row=first, rows=count, start=start, size=end - start, tokens=tokens)
            first, count, tokens, size = first + count, 0, 0, 0
        if not count:
            start = row.start
        count, tokens, size, end = count + 1, tokens + more, size + row.end - row.start, row.end
    if count:
        yield Partition(file=file, first_row=first, rows=count, start=start, size=end - start, tokens=tokens)


def bytes_per_token(texts: Sequence[str | bytes], tokenizer: Tokenizer) -> float:
    """The median of a sample; 4.0, as of English text, if it is empty. Never below 1."""
    readable = [text if isinstance(text, bytes) else text.encode("utf-8", "replace") for text in texts]
    encoded = tokenizer.encode_batch([text.decode("utf-8", "replace") for text in readable])
    ratios = [len(text) / len(tokens.ids) for text, tokens in zip(readable, encoded, strict=True) if tokens.ids]
    return max(1.0, statistics.median(ratios)) if ratios else 4.0
