"""Activations to 8 bits and products of them back to float32: a scale a row, so that no row depends on another."""

from __future__ import annotations

import torch

from polyhead.engine.cpu.gelu import gelu_tanh
from polyhead.engine.cpu.kernels import GELU_FLOOR, KERNELS

# Without VNNI the product adds pairs in 16 bits, which only 7-bit activations cannot overflow.
STEPS = 127 if torch.cpu._is_vnni_supported() else 63


def quantise(x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``(rows, columns)`` to uint8, and scales ``(rows,)``: a value is about ``(q - (steps + 1)) * scale``."""
    if KERNELS:
        return KERNELS.quantise(x, steps)
    largest = x.abs().amax(1, keepdim=True).clamp_min_(1e-12)  # (rows, 1)
    # Half a step more, as the conversion truncates. Two conversions: PyTorch has no quick one to uint8.
    quantised = (x * (steps / largest)).add_(steps + 1.5).to(torch.int16).to(torch.uint8)
    return quantised, largest[:, 0] / steps


def gelu_quantise(product: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU of ``product * scales[:, None] + bias`` to uint8 and scales: a value is about ``q * scale - GELU_FLOOR``.

    GELU is never below that floor, so all levels are for values that occur: a quantum of half the size.
    """
    levels = 2 * STEPS + 1
    if KERNELS:
        return KERNELS.gelu_quantise(product, scales, bias, levels)
    gelu = gelu_tanh(torch.addcmul(bias, product, scales[:, None]))
    span = gelu.amax(1, keepdim=True).clamp_min_(0).add_(GELU_FLOOR)  # (rows, 1)
    quantised = ((gelu + GELU_FLOOR) * (levels / span)).add_(0.5).to(torch.int16).to(torch.uint8)
    return quantised, span[:, 0] / levels


def rescale(
    product: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, adds: bool = False
) -> torch.Tensor:
    """``product * scales[:, None] + bias`` into `out`, or added to it."""
    if KERNELS:
        return KERNELS.rescale(product, scales, bias, out, adds)
    if adds:
        return out.add_(torch.addcmul(bias, product, scales[:, None]))
    return torch.addcmul(bias, product, scales[:, None], out=out)
