"""Attention in tiles for short texts: how it is chosen, and the kernel itself with Triton's interpreter."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.engine.cuda.attention import (
    CAUSAL,
    FULL,
    Attention,
    AttentionByLength,
    attention_for,
    check_attention,
    is_attention,
    padded_attention,
    short_attention,
)
from polyhead.engine.cuda.forward import CUDAForward
from polyhead.engine.cuda.packed import SHORT
from tests.classifier.test_engine_cuda import Pair, micro_batch, needs_cuda, rerun
from tests.classifier.test_fused_norm import ROOT, needs_triton
from tests.flash import flash_stand_in

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


class CompilingDriver:
    """What Triton asks a GPU's driver before it compiles; the number of the device is its capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def named(name: str, lengths: list[int]) -> Attention:
    """An attention that only notes the longest text of each call."""

    def attention(query: torch.Tensor, *arguments: Any, **_: Any) -> torch.Tensor:
        lengths.append(arguments[5])
        return torch.zeros_like(query)

    attention.__name__ = name
    return attention


def sees_the_future(query: Any, key: Any, value: Any, starts: Any, *arguments: Any, **options: Any) -> torch.Tensor:
    return padded_attention(query, key, value, starts, *arguments, **options | {"window_size": FULL})


def sees_the_next_text(query: Any, key: Any, value: Any, q: Any, k: Any, *longest: Any, **options: Any) -> torch.Tensor:
    return padded_attention(query, key, value, q, k + (k > 0) * (k < 194), *longest, **options)


def reads_one_tile(query: Any, key: Any, value: Any, q: Any, k: Any, *longest: Any, **options: Any) -> torch.Tensor:
    cut = value.clone()
    cut[int(k[2]) + 64 :] = 0
    return padded_attention(query, key, cut, q, k, *longest, **options)


def forgets_the_scale(query: Any, *arguments: Any, scale: float, **options: Any) -> torch.Tensor:
    return padded_attention(query, *arguments, scale=2 * scale, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_attention_is_found(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """The check takes attention itself, and refuses one that reads too much, too little, or scales wrongly."""
    assert is_attention(padded_attention, 16, dtype, CPU)
    for wrong in (sees_the_future, sees_the_next_text, reads_one_tile, forgets_the_scale):
        with caplog.at_level(logging.WARNING):
            assert not is_attention(wrong, 16, dtype, CPU), wrong
        assert f"{wrong.__name__} is not used: AssertionError" in caplog.text


def test_the_longest_text_of_a_shape_decides(tmp_path: Path) -> None:
    """Each recorded shape and each other batch takes the attention for its longest possible text, in every block."""
    short: list[int] = []
    long: list[int] = []
    attention = AttentionByLength(named("tiles", short), named("flash", long))
    assert attention.__name__ == f"tiles up to {SHORT} tokens, flash above"
    pair = Pair(tmp_path / "c", "base", None, {"n_positions": 400})
    spec = pair.checkpoint.spec.model_copy(update={"max_length": 400})
    checkpoint = dataclasses.replace(pair.checkpoint, spec=spec)
    forward = CUDAForward(checkpoint, "cpu", "fp32", attention=attention, record=rerun)
    assert forward.graphs
    assert {min(shape.longest, 400) for shape in forward.graphs.shapes} == {*short, *long}
    assert max(short) <= SHORT < min(long)
    for lengths, taken, other in (([SHORT, 3], short, long), ([SHORT + 1, 3], long, short)):
        for graphs in (forward.graphs, None):
            forward.graphs, before = graphs, (len(taken), len(other))
            forward.logits(micro_batch([[1] * length for length in lengths]))
            assert (len(taken), len(other)) == (before[0] + 3, before[1])


def test_flash_attention_goes_on_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If tiles are wrong, cannot be compiled, do not take the heads or are turned off, flash attention takes all."""
    from torch.nn.attention.varlen import varlen_attn

    monkeypatch.setattr("polyhead.engine.cuda.attention.takes_flash", lambda *_: True)
    with caplog.at_level(logging.WARNING):
        assert attention_for(40, torch.bfloat16, CUDA) is varlen_attn
        monkeypatch.setenv("POLYHEAD_TILE_ATTENTION", "off")
        assert attention_for(64, torch.bfloat16, CUDA) is varlen_attn
        assert caplog.text == ""
        monkeypatch.delenv("POLYHEAD_TILE_ATTENTION")
        if not torch.cuda.is_available():
            assert attention_for(64, torch.bfloat16, CUDA) is varlen_attn
            assert "tile_attention is not used: " in caplog.text
    monkeypatch.setattr("polyhead.engine.cuda.attention.short_attention", lambda *_: flash_stand_in)
    chosen = attention_for(64, torch.bfloat16, CUDA)
    assert isinstance(chosen, AttentionByLength)
    assert (chosen.short, chosen.long) == (flash_stand_in, varlen_attn)


@needs_triton
def test_the_kernel_with_tritons_interpreter(tmp_path: Path) -> None:
    """Any texts of 1 to 200 tokens as in float32, with the same bits alone; large scores; logits of a whole model."""
    command = [sys.executable, "-m", "tests.classifier.interpreted_attention", str(tmp_path / "checkpoint")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@needs_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_once_for_all_batches(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls as the load's check and the forward pass make them need two kernels in all, which fit any such GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.runtime import driver

    from polyhead.engine.cuda import attention_kernel as kernel

    compiled: dict[str, Any] = {}
    run = kernel._attend_tile.run

    def compile_only(*arguments: Any, warmup: bool, **options: Any) -> None:
        made = run(*arguments, warmup=True, **options)
        compiled[made.hash] = made

    monkeypatch.setattr(kernel._attend_tile, "run", compile_only)
    monkeypatch.setattr(driver, "_active", CompilingDriver(capability))
    calls = ((2, [1, 63], 0, 0.2), (12, [1], 0, 0.125), (12, [200, 3, 0], 1, 0.125), (12, [64] * 16, 3, 0.0625))
    for heads, lengths, offset, scale in calls:
        packed = torch.zeros(sum(lengths), 3, heads, 64, dtype=torch.bfloat16)
        starts, lasts = (
            torch.tensor([0] * offset + [0, *counts]).cumsum(0).to(torch.int32)[offset:]  # not aligned
            for counts in (lengths, [min(length, 1) for length in lengths])
        )
        kernel.tile_attention(
            *packed.unbind(1), starts, starts, max(lengths), max(lengths), scale=scale, window_size=CAUSAL
        )
        last = torch.zeros(len(lengths), heads, 64, dtype=torch.bfloat16)
        key, value = packed.flatten(1)[:, : 2 * heads * 64].contiguous().view(-1, 2, heads, 64).unbind(1)
        kernel.tile_attention(last, key, value, lasts, starts, 1, max(lengths), scale=scale, window_size=FULL)
    assert len(compiled) == 2
    for made in compiled.values():
        assert len(made.asm["cubin"]) > 1000
        assert made.metadata.shared <= 48 * 1024


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    """On a GPU it is right and used, if Triton can compile it there; a text's bits do not depend on other texts."""
    pytest.importorskip("triton")
    from polyhead.engine.cuda.attention_kernel import tile_attention

    try:
        check_attention(tile_attention, width, dtype, CUDA)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # a wrong value is an AssertionError
        pytest.skip(f"Triton cannot compile here, so flash attention computes: {error}")
    assert short_attention(width, dtype, CUDA) is tile_attention
    lengths = [1, 12, 63, 64, 65, 95, 128, 129, 200, 256, 0, 0]
    starts = torch.tensor([0, *lengths], device=CUDA).cumsum(0).to(torch.int32)
    qkv = torch.randn(sum(lengths) + 9, 3, 4, width, device=CUDA).to(dtype)
    qkv[sum(lengths) :] = torch.nan
    query, key, value = qkv.unbind(1)
    options: Any = {"scale": width**-0.5, "window_size": CAUSAL}
    computed = tile_attention(query, key, value, starts, starts, 256, 256, **options)[: sum(lengths)]
    exact = [part.float() for part in (query, key, value)]
    expected = padded_attention(exact[0], exact[1], exact[2], starts, starts, 256, 256, **options)[: sum(lengths)]
    torch.testing.assert_close(computed.float(), expected, rtol=2e-2, atol=2e-2)
    for first, length in zip(starts.tolist(), lengths[:10], strict=False):
        rows = slice(first, first + length)
        own = torch.tensor([0, length], dtype=torch.int32, device=CUDA)
        alone = tile_attention(query[rows], key[rows], value[rows], own, own, length, length, **options)
        assert torch.equal(alone, computed[rows]), length
