"""Micro-batches: texts cut by tokens, so that memory is bounded and short texts wait for no long one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

STRETCH = 4  # in a micro-batch that is large enough, the longest text is at most this many times its shortest


@dataclass(frozen=True)
class MicroBatch:
    """Texts computed together, shortest first.

    Attributes:
        rows: where each text stands in the list that was cut.
        token_ids: the texts, one packed behind the other.
    """

    rows: Sequence[int]
    token_ids: Sequence[Sequence[int]]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each text, ascending."""
        return [len(ids) for ids in self.token_ids]

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.lengths)


def similar_lengths(lengths: Sequence[int], slack: float) -> Iterator[tuple[int, int]]:
    """Cuts ascending lengths into runs, as first and end; a run's last is at most `slack` times its first."""
    first = 0
    for i, length in enumerate(lengths):
        if length > lengths[first] * slack:
            yield first, i
            first = i
    if lengths:
        yield first, len(lengths)


def micro_batches(token_ids: Sequence[Sequence[int]], token_budget: int, enough_tokens: int) -> Iterator[MicroBatch]:
    """Cuts texts into micro-batches, the shortest texts first.

    Args:
        token_ids: non-empty sequences, in any order.
        token_budget: most tokens a micro-batch; a text longer than that stands alone.
        enough_tokens: a micro-batch of that many tokens keeps the machine busy; it takes no text that is much longer
            than its first, so that 64 short texts do not wait for a long one.
    """
    order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
    rows: list[int] = []
    tokens = 0
    for row in order:
        length = len(token_ids[row])
        is_full = tokens + length > token_budget
        stretches = tokens >= enough_tokens and length > STRETCH * len(token_ids[rows[0]])
        if rows and (is_full or stretches):
            yield MicroBatch(rows, [token_ids[row] for row in rows])
            rows, tokens = [], 0
        rows.append(row)
        tokens += length
    if rows:
        yield MicroBatch(rows, [token_ids[row] for row in rows])
