"""Batches are cut into parts of bounded cost, short texts first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polyhead.parts import parts


def test_long_text_is_last_and_alone() -> None:
    """Texts of 16 tokens fill a part of 1,024 and do not share it with a text of 1,024."""
    rows = [[7] * 1024] + [[number] * 16 for number in range(63)]
    assert parts(rows, 1024) == [list(range(1, 64)), [0]]


def test_identical_texts_cost_one() -> None:
    """A flood of one text is one part, which the engine computes once."""
    assert parts([[1, 2, 3]] * 50, 4) == [list(range(50))]


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=30), st.integers(1, 20))
def test_every_text_has_one_part(rows: list[list[int]], tokens: int) -> None:
    """Each position occurs once, parts keep the bound, lengths only rise."""
    cut = parts(rows, tokens)
    flat = [position for part in cut for position in part]
    assert sorted(flat) == list(range(len(rows)))
    lengths = [len(rows[position]) for position in flat]
    assert lengths == sorted(lengths)
    for part in cut:
        distinct = {tuple(rows[position]) for position in part}
        assert sum(map(len, distinct)) <= max(tokens, *(map(len, distinct)))
