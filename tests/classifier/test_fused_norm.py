"""Residual and layer norm in one kernel: how they are chosen, and the kernels themselves with Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyhead.engine.cuda.norm import (
    LARGEST_WIDTH,
    TORCH_NORMS,
    Pair,
    StreamNorms,
    check_norms,
    norms_for,
    torch_add,
    torch_embed,
    triton_norms,
)
from tests.classifier.interpreted_norm import BY_HAND, CHANGE, PLACES
from tests.classifier.test_engine_cuda import assert_near, needs_cuda

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs the triton package, which torch for CUDA brings (pip install triton: 1 GB)",
)
# Mean 2.5, variance 1.25, epsilon 0.75: distances of 1.5 and 0.5, divided by the root of 2. Equal values give 0.
NORMED = [
    [-1.0606602, -0.3535534, 0.3535534, 1.0606602],
    [0.0, 0.0, 0.0, 0.0],
    [-1.0606602, -0.3535534, 0.3535534, 1.0606602],
]
ADDED = [[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0], [1000.0, 1001.0, 1002.0, 1003.0]]


def exact_add(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> Pair:
    """The norm is that of the sum before it is rounded, as in the kernel."""
    added, normed = torch_add(hidden.double(), change.double(), epsilon)
    return added.to(hidden.dtype), normed.to(hidden.dtype)


def exact_embed(ids: Any, positions: Any, tokens: Any, places: Any, epsilon: float, dtype: torch.dtype) -> Pair:
    hidden, normed = torch_embed(ids, positions, tokens.double(), places.double(), epsilon, torch.float64)
    return hidden.to(dtype), normed.to(dtype)


def without_positions(ids: Any, positions: Any, tokens: Any, places: Any, epsilon: float, dtype: torch.dtype) -> Pair:
    return exact_embed(ids, positions, tokens, torch.zeros_like(places), epsilon, dtype)


def without_change(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> Pair:
    return hidden, F.layer_norm(hidden, hidden.shape[-1:], eps=epsilon)


def one_pass_variance(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> Pair:
    """The mean of squares minus the square of the mean, which loses digits far from zero."""
    total = hidden.float() + change.float()
    mean = total.mean(-1, keepdim=True)
    variance = (total * total).mean(-1, keepdim=True) - mean * mean
    normed = (total - mean) * (variance + epsilon).rsqrt()
    return total.to(hidden.dtype), normed.to(hidden.dtype)


def rows_out_of_place(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> Pair:
    added, normed = exact_add(hidden, change, epsilon)
    return added, normed.roll(1, 0)


def test_pytorchs_own_kernels() -> None:
    """Sums and norms have the values computed by hand, of a layer's change and of embeddings."""
    added, normed = torch_add(torch.tensor(BY_HAND), torch.tensor(CHANGE), 0.75)
    assert added.tolist() == ADDED
    np.testing.assert_allclose(normed, NORMED, atol=1e-5)
    places = torch.tensor(PLACES, dtype=torch.int32)
    tables = torch.tensor(BY_HAND), torch.tensor(CHANGE)
    embedded, normed = torch_embed(places, places, *tables, 0.75, torch.float32)
    assert embedded.tolist() == [ADDED[place] for place in PLACES]
    np.testing.assert_allclose(normed, [NORMED[place] for place in PLACES], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_found(dtype: torch.dtype) -> None:
    """The check takes the exact result, and refuses what is lost or mixed up, and a variance in one pass."""
    for width in (8, 100, 768):
        check_norms(StreamNorms("exact", exact_embed, exact_add), width, dtype, CPU)
    wrong = [without_change, rows_out_of_place] + [one_pass_variance] * (dtype == torch.float32)
    for norms in (
        StreamNorms("wrong", without_positions, exact_add),
        *(StreamNorms("wrong", exact_embed, add) for add in wrong),
    ):
        with pytest.raises(AssertionError, match="not close"):
            check_norms(norms, 96, dtype, CPU)


def test_a_gpu_without_the_kernels_uses_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong when the kernels are tried, PyTorch computes and the log says why; a CPU needs no word."""
    with caplog.at_level(logging.WARNING):
        assert norms_for(64, torch.bfloat16, CPU) is TORCH_NORMS
        assert caplog.text == ""
        if not torch.cuda.is_available():
            assert norms_for(64, torch.bfloat16, torch.device("cuda")) is TORCH_NORMS
            assert "residual and layer norm are not fused: " in caplog.text
        assert norms_for(LARGEST_WIDTH + 1, torch.bfloat16, torch.device("cuda")) is TORCH_NORMS
    assert f"rows of {LARGEST_WIDTH + 1} are wider than {LARGEST_WIDTH}" in caplog.text


@needs_triton
def test_the_kernels_with_tritons_interpreter(tmp_path: Path) -> None:
    """The values computed by hand; float32's on hard rows of four widths; and transformers' logits of a whole model."""
    command = [sys.executable, "-m", "tests.classifier.interpreted_norm", str(tmp_path / "checkpoint")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {name: np.array(rows) for name, rows in json.loads(done.stdout.splitlines()[-1]).items()}
    assert found["added"].tolist() == ADDED
    np.testing.assert_allclose(found["normed"], NORMED, atol=1e-4)
    assert found["embedded"].tolist() == [ADDED[place] for place in PLACES]
    np.testing.assert_allclose(found["embedded normed"], [NORMED[place] for place in PLACES], atol=1e-4)
    np.testing.assert_allclose(found["fp32"], found["expected"], atol=1e-5)
    assert_near(found["bf16"], found["expected"], found["expected"].std())


@needs_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_kernels_compile_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton makes machine code of both kernels for sm_80 and sm_90, which needs no GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from polyhead.engine.cuda import norm_kernel

    add = ["hidden", "change", "added", "normed"]
    embed = ["ids", "positions", "token_table", "position_table", "hidden", "normed"]
    for kernel, pointers in ((norm_kernel._add_row, add), (norm_kernel._embed_row, embed)):
        types = {name: "*i32" if name in ("ids", "positions") else "*bf16" for name in pointers}
        types |= {name: "*fp32" for name in pointers if name.endswith("_table")}
        types |= {"epsilon": "fp32", "width": "constexpr", "block": "constexpr"}
        source = ASTSource(fn=kernel, signature=types, constexprs={"width": 768, "block": 1024})
        for capability in (80, 90):
            compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
            assert len(compiled.asm["cubin"]) > 1000


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("width", [64, 768, 1600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    """On a GPU the kernels give PyTorch's values and are used, if Triton can compile them there."""
    pytest.importorskip("triton")
    fused = triton_norms()
    try:
        check_norms(fused, width, dtype, torch.device("cuda"))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # a wrong value is an AssertionError
        pytest.skip(f"Triton cannot compile here, so PyTorch computes: {error}")
    assert norms_for(width, dtype, torch.device("cuda")) == fused
