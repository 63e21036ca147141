"""A micro-batch is divided among threads if the shares are even; the result is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.checkpoint import read_checkpoint
from polyhead.engine import Engine
from polyhead.engine.micro_batch import MicroBatch, even_shares


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
