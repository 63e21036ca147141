"""Micro-batches hold every text once and keep the token budget; short texts do not wait for a long one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polyhead.engine.micro_batch import STRETCH, micro_batches

LENGTHS = st.lists(st.integers(1, 200), max_size=40)


@given(lengths=LENGTHS, budget=st.integers(1, 400), enough=st.integers(1, 400))
def test_every_text_once_within_the_budget(lengths: list[int], budget: int, enough: int) -> None:
    """Each text is in one micro-batch, with its own position; only a single long text may exceed the budget."""
    texts = [[row] * length for row, length in enumerate(lengths)]
    batches = list(micro_batches(texts, budget, enough))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(texts)))
    for batch in batches:
        assert [texts[row] for row in batch.rows] == batch.token_ids
        assert batch.tokens <= budget or len(batch.rows) == 1


@given(lengths=LENGTHS, budget=st.integers(1, 400), enough=st.integers(1, 400))
def test_short_texts_come_first(lengths: list[int], budget: int, enough: int) -> None:
    """Lengths ascend through all micro-batches."""
    batches = list(micro_batches([[0] * length for length in lengths], budget, enough))
    assert [length for batch in batches for length in batch.lengths] == sorted(lengths)


def test_a_long_text_stands_apart() -> None:
    """64 short texts are enough for a micro-batch, so a text of 1,024 tokens goes into the next."""
    texts = [[0] * 1024, *[[0] * 16] * 64]
    short, long = micro_batches(texts, token_budget=4096, enough_tokens=512)
    assert short.lengths == [16] * 64
    assert long.rows == [0]


def test_few_short_texts_do_not_stand_apart() -> None:
    """Fewer tokens than that are computed together with a long text, if they fit the budget."""
    (batch,) = micro_batches([[0] * 1024, [0] * 16], token_budget=4096, enough_tokens=512)
    assert batch.tokens == 1040


@given(lengths=LENGTHS, enough=st.integers(1, 100))
def test_a_large_enough_batch_is_not_stretched(lengths: list[int], enough: int) -> None:
    """A text that joins a micro-batch of enough tokens is at most STRETCH times as long as its first text."""
    for batch in micro_batches([[0] * length for length in lengths], 10**6, enough):
        tokens = 0
        for length in batch.lengths:
            assert tokens < enough or length <= STRETCH * batch.lengths[0]
            tokens += length
