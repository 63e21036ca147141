"""Attention on AMX's tiles, with plain C in place of the tile instructions, so that every processor tests its logic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.engine.cpu.kernels import HEAD_WIDTH, KERNELS
from polyhead.engine.cpu.kernels.amx_attention import AMXAttention
from tests.classifier.test_kernels import HEADS, attended
from tests.threads import threads

CHANNELS = HEADS * HEAD_WIDTH
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 100)  # around tiles of 16 and chunks of 32


@pytest.fixture(scope="module")
def amx(amx_stand_in: Path) -> AMXAttention:
    """Attention on tiles."""
    return AMXAttention(amx_stand_in)


def drawn(tokens: int, seed: int = 0) -> torch.Tensor:
    """Normal queries, keys and values."""
    return torch.randn(tokens, 3 * CHANNELS, generator=torch.Generator().manual_seed(seed)).bfloat16()


def attend(
    amx: AMXAttention, texts: list[torch.Tensor], dtype: torch.dtype = torch.bfloat16, spare: int = 0
) -> list[torch.Tensor]:
    """Attention of packed texts, one result per text; `spare` rows of NaN stand after the last one."""
    lengths = [len(text) for text in texts]
    qkv = torch.cat([*texts, torch.full((spare, 3 * CHANNELS), torch.nan, dtype=torch.bfloat16)])
    out = torch.full((len(qkv), CHANNELS), torch.nan, dtype=dtype)
    amx.attend(qkv, torch.tensor([0, *lengths]).cumsum(0), HEADS, 0.125, out)
    return list(out[: sum(lengths)].split(lengths))


def test_attention_by_hand(amx: AMXAttention) -> None:
    """Keys of zeros weigh the same, so a query gets the mean of the values up to its own: 0, 1/2, 1, 3/2, 2, ..."""
    qkv = torch.zeros(40, 3 * CHANNELS)
    qkv[:, 2 * CHANNELS :] = torch.arange(40.0)[:, None]
    (found,) = attend(amx, [qkv.bfloat16()], torch.float32)
    assert found[:, 0].tolist() == pytest.approx([place / 2 for place in range(40)], rel=1e-6)
    assert found.equal(found[:, :1].expand(-1, CHANNELS))


def test_each_channel_and_head_is_its_own(amx: AMXAttention) -> None:
    """Every value differs, and a text's first token sees only itself: its result is its value, at every place."""
    qkv = drawn(1)
    (found,) = attend(amx, [qkv])
    assert found.equal(qkv[:, 2 * CHANNELS :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_is_float64s(amx: AMXAttention, dtype: torch.dtype) -> None:
    """Texts of all lengths around the edges of tiles; weights are rounded to bfloat16, as those of PyTorch's are."""
    texts = [drawn(length, length) for length in EDGES]
    found = torch.cat(attend(amx, texts, dtype))
    wanted = attended(torch.cat(texts), list(EDGES))
    assert (found - wanted).abs().max() < (0.016 if dtype == torch.bfloat16 else 0.011)
    assert (found - wanted).square().mean().sqrt() < 0.0015


def test_the_error_is_near_that_of_float32_weights(amx: AMXAttention) -> None:
    """The other kernel keeps weights in float32. Rounding them costs less than rounding the result does."""
    if KERNELS is None:
        pytest.skip("no kernels were compiled")
    texts = [drawn(length, length) for length in EDGES]
    wanted = attended(torch.cat(texts), list(EDGES))
    starts = torch.tensor([0, *EDGES]).cumsum(0)
    other = KERNELS.attend(torch.cat(texts), starts, HEADS, 0.125, torch.empty(len(wanted), CHANNELS).bfloat16())
    errors = [float((found - wanted).square().mean().sqrt()) for found in (torch.cat(attend(amx, texts)), other)]
    assert errors[0] < 1.5 * errors[1]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=7), seed=st.integers(0, 9999), size=st.floats(0.01, 30),
    data=st.data(),
)  # fmt: skip
def test_a_text_has_the_same_bits_alone_and_in_any_batch(
    amx: AMXAttention, lengths: list[int], seed: int, size: float, data: st.DataObject
) -> None:
    """Neither other texts, their order, rows after the last text nor threads change a bit."""
    texts = [(size**0.5 * drawn(length, seed + place)).bfloat16() for place, length in enumerate(lengths)]
    together = attend(amx, texts)
    order = data.draw(st.permutations(range(len(texts))))
    with threads(2):
        shuffled = attend(amx, [texts[place] for place in order], spare=8)
    for place, text in enumerate(texts):
        assert attend(amx, [text])[0].equal(together[place])
        assert shuffled[order.index(place)].equal(together[place])


@pytest.mark.parametrize("growth", [10.0, 100.0, 1000.0])
def test_scores_may_grow_beyond_any_limit(amx: AMXAttention, growth: float) -> None:
    """A score that outweighs the first key's by 2 to the power of hundreds is computed again with the largest score."""
    qkv = drawn(150)
    qkv[:, :CHANNELS] = 1.0
    qkv[:, CHANNELS : 2 * CHANNELS] += torch.linspace(0, growth / 8, 150)[:, None].bfloat16()
    (found,) = attend(amx, [qkv], torch.float32)
    assert (found - attended(qkv, [150])).abs().max() < 0.02


def test_a_nan_stays_in_its_text(amx: AMXAttention) -> None:
    """A damaged text must not look healthy, and must not spoil another text, nor the next call on this thread."""
    texts = [drawn(length, length) for length in (40, 33, 5, 70)]
    healthy = attend(amx, texts)
    damaged = attend(amx, [texts[0], torch.full_like(texts[1], torch.nan), *texts[2:]])
    assert damaged[1].isnan().all()
    assert all(damaged[text].equal(healthy[text]) for text in (0, 2, 3))
    assert attend(amx, texts)[1].equal(healthy[1])


def test_a_nan_reaches_its_texts_last_token(amx: AMXAttention) -> None:
    """One NaN among the first queries, keys or values is not hidden from the token that is read."""
    for column in (CHANNELS, 2 * CHANNELS):  # a key, a value
        qkv = drawn(60)
        qkv[3, column] = torch.nan
        assert attend(amx, [qkv])[0][-1, :HEAD_WIDTH].isnan().any()


def test_heads_are_divided_among_threads(amx: AMXAttention) -> None:
    """A text of 1,024 tokens has the same bits with two threads, and is float64's."""
    qkv = drawn(1024)
    (alone,) = attend(amx, [qkv])
    with threads(2):
        (divided,) = attend(amx, [qkv])
    assert divided.equal(alone)
    assert (alone - attended(qkv, [1024])).abs().max() < 0.016


def test_tensors_that_c_would_misread_are_refused(amx: AMXAttention) -> None:
    """Other shapes and types are errors instead of wrong answers."""
    qkv, out, starts = drawn(5), torch.empty(5, CHANNELS), torch.tensor([0, 2, 5])
    for rows, result in ((qkv.float(), out), (qkv, out.half()), (qkv[:4], out), (qkv, out[:, :64])):
        with pytest.raises(TypeError, match="kernels take dense"):
            amx.attend(rows, starts, HEADS, 0.125, result)
    for places in ([1, 5], [0, 2, 2, 5], [0, 6]):
        with pytest.raises(TypeError, match="texts must start"):
            amx.attend(qkv, torch.tensor(places), HEADS, 0.125, out)


def test_the_check_finds_a_wrong_result(amx: AMXAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs at load passes here, and fails if scores are scaled wrongly."""
    amx.check()
    right = AMXAttention.attend
    monkeypatch.setattr(
        AMXAttention, "attend",
        lambda self, qkv, starts, heads, scale, out: right(self, qkv, starts, heads, 1.2 * scale, out),
    )  # fmt: skip
    with pytest.raises(OSError, match="a small attention on AMX is off by"):
        amx.check()
