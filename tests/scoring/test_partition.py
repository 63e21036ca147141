"""Partitions: every row in one of them, in order, and none too large."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from polyhead_scoring.partition import PARTITION_BYTES, Limits, RowSize, bytes_per_token, cut
from tests.tiny import TEXTS, tiny_tokenizer


@given(st.lists(st.integers(0, 400)), st.integers(1, 200), st.integers(1, 60))
def test_rows_are_cut_by_tokens(text_bytes: list[int], tokens: int, max_length: int) -> None:
    """Whatever the lengths, each row is in one partition, in order, and only a row alone exceeds the limit."""
    limits = Limits(tokens=tokens, max_length=max_length, bytes_per_token=2.0)
    rows, end = [], 0
    for size in text_bytes:
        rows.append(RowSize(size, end, end + size + 10))
        end += size + 10
    partitions = list(cut("file", rows, limits))
    assert [row for p in partitions for row in range(p.first_row, p.first_row + p.rows)] == list(range(len(rows)))
    assert [p.start for p in partitions] == [rows[p.first_row].start for p in partitions]
    assert sum(p.size for p in partitions) == end
    for partition in partitions:
        inside = rows[partition.first_row : partition.first_row + partition.rows]
        assert partition.tokens == sum(limits.estimate(row.text_bytes) for row in inside)
        assert partition.tokens <= tokens or partition.rows == 1
    for before, after in pairwise(partitions):
        assert before.tokens + limits.estimate(rows[after.first_row].text_bytes) > tokens


def test_large_rows_are_cut_by_bytes() -> None:
    """Where columns beside the text are large, partitions hold few rows."""
    half = PARTITION_BYTES // 2
    rows = [RowSize(8, i * half, (i + 1) * half) for i in range(5)]
    assert [p.rows for p in cut("file", rows, Limits(tokens=1000, max_length=48, bytes_per_token=4.0))] == [2, 2, 1]


def test_bytes_per_token_of_a_sample() -> None:
    """It is that of the texts in the middle; an empty sample counts as English."""
    tokenizer = tiny_tokenizer()
    ratio = bytes_per_token(TEXTS, tokenizer)
    assert 1 < ratio < 5
    assert bytes_per_token([*TEXTS, "\ud800", b"\xff"], tokenizer) > 1
    assert bytes_per_token([], tokenizer) == 4.0
