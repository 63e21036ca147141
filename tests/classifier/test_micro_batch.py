"""Micro-batches hold every text once and keep the token budget; they are divided among threads if that is even."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint
from polyhead.engine import Engine
from polyhead.engine.micro_batch import STRETCH, MicroBatch, even_shares, micro_batches

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


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Other tests use one thread."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def of_lengths(*lengths: int) -> MicroBatch:
    """A micro-batch of distinct texts with these ascending lengths."""
    return MicroBatch(range(len(lengths)), [[row] * length for row, length in enumerate(lengths)])


def test_texts_are_dealt_out_evenly() -> None:
    """Every text is in one share, and no share is much larger than the others."""
    batch = of_lengths(*range(20, 60))
    shares = even_shares(batch, 3)
    assert sorted(row for share in shares for row in share.rows) == list(range(40))
    assert max(share.tokens for share in shares) < 1.1 * batch.tokens / 3
    assert all(share.lengths == sorted(share.lengths) for share in shares)


@pytest.mark.parametrize(
    ("lengths", "workers"),
    [((1000,), 2), ((10, 1000), 2), ((40,) * 6, 2), ((100,) * 9, 1), ((300,) * 4, 3)],
)
def test_a_small_or_uneven_batch_stays_whole(lengths: tuple[int, ...], workers: int) -> None:
    """One long text, few tokens, or fewer texts than workers: the batch is not divided."""
    batch = of_lengths(*lengths)
    assert even_shares(batch, workers) == [batch]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shares_change_nothing(base_checkpoint: Path, precision: str) -> None:
    """A divided batch has the logits of each text alone, in order; torch keeps its number of threads."""
    checkpoint = read_checkpoint(base_checkpoint)
    engine = Engine(checkpoint, precision=precision)
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, checkpoint.body.vocab_size, 10 + row % 30).tolist() for row in range(60)]
    together = engine.logits(texts)
    assert torch.get_num_threads() == 3
    alone = np.concatenate([engine.logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5 if precision == "fp32" else 0.02)
