"""The engine's speed and memory on one batch, and how fast this machine multiplies matrices, which is its limit.

This module imports little, because `measure_batch` runs in a new process for each batch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from polyhead.body import Body
from polyhead.checkpoint import read_checkpoint
from polyhead.engine import Engine, fastest_precision

# On CPU: GPT-2 small's widest linear layer on 4,096 tokens. On CUDA: a shape that reaches the card's highest rate.
SHAPES = {"cpu": (4096, 768, 3072), "cuda": (8192, 8192, 8192)}
MIB = 2**20
CUDA_CALLS = 20  # timed together, because one is too short to time


class GemmPeak:
    """Times each of torch's ways to multiply matrices in fp32 or bf16, in turns with the peers.

    Args:
        shape: rows, inner, columns.
    """

    def __init__(self, precision: str, device: str, shape: tuple[int, int, int]) -> None:
        self.device = device
        self._flops = 2 * math.prod(shape)
        self._ways = multiplications(precision, device, shape)
        self._rates: dict[str, list[float]] = {way: [] for way in self._ways}
        for multiply in self._ways.values():
            multiply()

    def measure(self) -> float:
        """Times each way once more; returns the highest rate, GFLOP/s."""
        calls = CUDA_CALLS if self.device == "cuda" else 1
        for way, multiply in self._ways.items():
            self._wait()
            started = time.perf_counter()
            for _ in range(calls):
                multiply()
            self._wait()
            self._rates[way].append(calls * self._flops / (time.perf_counter() - started) / 1e9)
        return max(rates[-1] for rates in self._rates.values())

    def gflops(self) -> dict[str, float]:
        """The median rate of each way, GFLOP/s."""
        return {way: round(statistics.median(rates), 1) for way, rates in self._rates.items()}

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def multiplications(precision: str, device: str, shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """Ways to multiply two matrices: plain, and with the weight packed once if torch has a kernel for that."""
    rows, inner, columns = shape
    torch.manual_seed(0)
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


def median_s(call: Callable[[], object], calls: int) -> float:
    """The median time of a call in seconds."""
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def linear_flops(body: Body) -> int:
    """FLOPs per token of all blocks' linear layers, without attention, embeddings and head."""
    inner = body.n_inner or 4 * body.n_embd
    return 2 * body.n_layer * (4 * body.n_embd**2 + 2 * body.n_embd * inner)


def measure_batch(checkpoint: Path, batch: Sequence[Sequence[int]], device: str, repeats: int) -> dict[str, Any]:
    """The engine's speed on one batch, and the memory that it takes: the growth of the peak during the calls.

    It needs a new process, because memory that the process already has would hide the growth.
    """
    precision = fastest_precision(torch.device(device))
    engine = Engine(read_checkpoint(checkpoint), device, precision)
    engine.logits([[1, 2, 3, 4]])  # the first call makes what all calls use
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated() / MIB
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size; see proc(5)
        loaded = _status_mib("VmRSS")
    second, tokens = median_s(lambda: engine.logits(batch), repeats), sum(map(len, batch))
    peak = torch.cuda.max_memory_allocated() / MIB if device == "cuda" else _status_mib("VmHWM")
    return {
        "tokens": tokens,
        "texts": len(batch),
        "texts_s": round(len(batch) / second, 2),
        "tok_s": round(tokens / second, 1),
        "loaded_mib": round(loaded, 1),
        "growth_mib": round(peak - loaded, 1),
        "precision": precision,
    }


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024  # given in kB
