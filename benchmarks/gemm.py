"""How fast this machine multiplies matrices: what an engine's FLOP/s are a fraction of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from polyhead.body import Body

# On CPU, GPT-2 small's widest linear layer on 4,096 tokens; on CUDA a shape that reaches the card's best rate.
SHAPES = {"cpu": (4096, 768, 3072), "cuda": (8192, 8192, 8192)}
CUDA_CALLS = 20  # in a row, since one is too short for a clock


class GemmPeak:
    """Times a matrix product in each way that torch has for a precision; measured in turns with the peers.

    Args:
        shape: rows, inner, columns.
    """

    def __init__(self, precision: str, device: str, shape: tuple[int, int, int]) -> None:
        self._device = device
        self._flops = 2 * shape[0] * shape[1] * shape[2]
        self._ways = multiplications(precision, device, shape)
        self._rates: dict[str, list[float]] = {way: [] for way in self._ways}
        for multiply in self._ways.values():
            multiply()

    def measure(self) -> None:
        """Times each way once more."""
        calls = CUDA_CALLS if self._device == "cuda" else 1
        for way, multiply in self._ways.items():
            self._wait()
            started = time.perf_counter()
            for _ in range(calls):
                multiply()
            self._wait()
            self._rates[way].append(calls * self._flops / (time.perf_counter() - started) / 1e9)

    def gflops(self) -> dict[str, float]:
        """The median rate of each way, GFLOP/s."""
        return {way: round(statistics.median(rates), 1) for way, rates in self._rates.items()}

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def multiplications(precision: str, device: str, shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """Ways to multiply two matrices: plain, and with the weight packed once where torch has a kernel for it."""
    rows, inner, columns = shape
    torch.manual_seed(0)
    if precision == "int8":
        return _int8_multiplications(device, shape)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(rows, inner, dtype=dtype, device=device)
    weight = torch.randn(columns, inner, dtype=dtype, device=device)
    plain = weight.t().contiguous()
    ways: dict[str, Callable[[], object]] = {"mm": lambda: torch.mm(x, plain)}
    if device == "cpu" and (precision == "fp32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways["mkldnn packed"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    if device == "cpu" and precision == "fp32" and torch.backends.mkl.is_available():
        mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        ways["mkl packed"] = lambda: torch.ops.mkl._mkl_linear(x, mkl, weight, None, rows)
    return ways


def _int8_multiplications(device: str, shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    rows, inner, columns = shape
    weight = torch.randint(-127, 127, (columns, inner), dtype=torch.int8, device=device)
    if device == "cuda":
        x = torch.randint(-127, 127, (rows, inner), dtype=torch.int8, device=device)
        return {"int_mm": lambda: torch._int_mm(x, weight.t())}
    # torch._int_mm has no fast kernel on CPU; this one is what quantized models run.
    x = torch.randint(0, 255, (rows, inner), dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inner])
    scales, zeros = torch.ones(columns), torch.zeros(columns, dtype=torch.int64)
    return {
        "onednn qlinear": lambda: torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    }


def linear_flops(body: Body) -> int:
    """FLOPs a token of all blocks' linear layers; attention, embeddings and head are not counted."""
    inner = body.n_inner or 4 * body.n_embd
    return 2 * body.n_layer * (4 * body.n_embd**2 + 2 * body.n_embd * inner)
