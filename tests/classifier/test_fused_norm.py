"""Residual and layer norm in one kernel: how it is chosen, and the kernel itself with Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyhead.engine.cuda.norm import LARGEST_WIDTH, add_norm_for, check_add_norm, torch_add_norm
from tests.classifier.interpreted_norm import BY_HAND, CHANGE
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


def exact_add_norm(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm is that of the sum before it is rounded, as in the kernel."""
    added, normed = torch_add_norm(hidden.double(), change.double(), epsilon)
    return added.to(hidden.dtype), normed.to(hidden.dtype)


def without_change(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden, F.layer_norm(hidden, hidden.shape[-1:], eps=epsilon)


def one_pass_variance(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of squares minus the square of the mean, which loses digits far from zero."""
    total = hidden.float() + change.float()
    mean = total.mean(-1, keepdim=True)
    variance = (total * total).mean(-1, keepdim=True) - mean * mean
    normed = (total - mean) * (variance + epsilon).rsqrt()
    return total.to(hidden.dtype), normed.to(hidden.dtype)


def rows_out_of_place(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    added, normed = exact_add_norm(hidden, change, epsilon)
    return added, normed.roll(1, 0)


def test_pytorchs_own_two_kernels() -> None:
    """Sum and norm have the values computed by hand."""
    added, normed = torch_add_norm(torch.tensor(BY_HAND), torch.tensor(CHANGE), 0.75)
    assert added.tolist() == ADDED
    np.testing.assert_allclose(normed, NORMED, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_found(dtype: torch.dtype) -> None:
    """The check takes the exact result, and refuses a lost change, a mixed-up row and a variance in one pass."""
    for width in (8, 100, 768):
        check_add_norm(exact_add_norm, width, dtype, CPU)
    wrong = [without_change, rows_out_of_place] + [one_pass_variance] * (dtype == torch.float32)
    for add_norm in wrong:
        with pytest.raises(AssertionError, match="not close"):
            check_add_norm(add_norm, 96, dtype, CPU)


def test_a_gpu_without_the_kernel_uses_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong when the kernel is tried, PyTorch computes and the log says why; a CPU needs no word."""
    with caplog.at_level(logging.WARNING):
        assert add_norm_for(64, torch.bfloat16, CPU) is torch_add_norm
        assert caplog.text == ""
        if not torch.cuda.is_available():
            assert add_norm_for(64, torch.bfloat16, torch.device("cuda")) is torch_add_norm
            assert "residual and layer norm are not fused: " in caplog.text
        assert add_norm_for(LARGEST_WIDTH + 1, torch.bfloat16, torch.device("cuda")) is torch_add_norm
    assert f"rows of {LARGEST_WIDTH + 1} are wider than {LARGEST_WIDTH}" in caplog.text


@needs_triton
def test_the_kernel_with_tritons_interpreter(tmp_path: Path) -> None:
    """The values computed by hand; PyTorch's on hard rows of four widths; and transformers' logits of a whole model."""
    command = [sys.executable, "-m", "tests.classifier.interpreted_norm", str(tmp_path / "checkpoint")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {name: np.array(rows) for name, rows in json.loads(done.stdout.splitlines()[-1]).items()}
    assert found["added"].tolist() == ADDED
    np.testing.assert_allclose(found["normed"], NORMED, atol=1e-4)
    np.testing.assert_allclose(found["fp32"], found["expected"], atol=1e-5)
    assert_near(found["bf16"], found["expected"], found["expected"].std())


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("width", [64, 768, 1600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    """On a GPU the kernel gives PyTorch's values and is used, if Triton can compile it there."""
    pytest.importorskip("triton")
    from polyhead.engine.cuda.norm_kernel import fused_add_norm

    try:
        check_add_norm(fused_add_norm, width, dtype, torch.device("cuda"))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # a wrong value is an AssertionError
        pytest.skip(f"Triton cannot compile here, so PyTorch computes: {error}")
    assert add_norm_for(width, dtype, torch.device("cuda")) is fused_add_norm
