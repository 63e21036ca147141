"""Micro-batches: which texts are computed together, and on which thread.

Texts are cut by tokens, so that memory is bounded and short texts do not wait for a long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from polyhead.engine.token_ids import TokenArray

STRETCH = 4  # in a micro-batch of enough tokens, the longest text is at most this many times the shortest
SHARE_TOKENS = 128  # fewer tokens are too little work for another thread
BALANCE = 1.25  # the largest share has at most this many times the tokens of an even share


@dataclass(frozen=True)
class MicroBatch:
    """Texts computed together, shortest first.

    Attributes:
        rows: the position of each text in the list that was cut.
        token_ids: the texts.
    """

    rows: Sequence[int]
    token_ids: Sequence[TokenArray]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens per text, ascending."""
        return [len(ids) for ids in self.token_ids]

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.lengths)


def micro_batches(token_ids: Sequence[TokenArray], token_budget: int, enough_tokens: int) -> Iterator[MicroBatch]:
    """Cuts texts into micro-batches, the shortest texts first.

    Args:
        token_ids: non-empty sequences, in any order.
        token_budget: the most tokens per micro-batch; a text longer than that stands alone.
        enough_tokens: a micro-batch of so many tokens keeps the machine busy. It takes no text that is more than
            `STRETCH` times as long as its first, so that 64 short texts do not wait for a long one.
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


def even_shares(batch: MicroBatch, workers: int) -> list[MicroBatch]:
    """Deals the texts to workers in turns, so each share's lengths ascend; `[batch]` if it is small or uneven."""
    if workers == 1 or batch.tokens < workers * SHARE_TOKENS:
        return [batch]
    shares = [MicroBatch(batch.rows[k::workers], batch.token_ids[k::workers]) for k in range(workers)]
    is_even = max(share.tokens for share in shares) <= BALANCE * batch.tokens / workers
    return shares if is_even else [batch]


def similar_lengths(lengths: Sequence[int], slack: float) -> Iterator[tuple[int, int]]:
    """Cuts ascending lengths into runs (first, end); a run's last length is at most `slack` times its first."""
    first = 0
    for i, length in enumerate(lengths):
        if length > lengths[first] * slack:
            yield first, i
            first = i
    if lengths:
        yield first, len(lengths)
