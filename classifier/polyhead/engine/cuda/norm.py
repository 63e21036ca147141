"""The residual stream on a GPU: adds a layer's output, and normalises the sum for the next layer.

Both steps are one kernel (`norm_kernel`), because each only moves memory. Gain and bias of a norm are part of the
linear layer that follows. A layer's own bias is added in its product, before that is rounded: where a bias undoes what
the product adds, rounding first would triple the error (docs/decisions/0007-engine.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

# Takes stream (rows, width), change (rows, width) and epsilon; returns the sum and its norm, in the stream's dtype.
AddNorm = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]

LARGEST_WIDTH = 16384  # of a row that one block of threads holds in registers


def add_norm_for(width: int, dtype: torch.dtype, device: torch.device) -> AddNorm:
    """The fastest function that is right on this device; logs a line if a GPU must use PyTorch's two kernels."""
    if device.type != "cuda":
        return torch_add_norm
    try:
        if width > LARGEST_WIDTH:
            raise ValueError(f"rows of {width} are wider than {LARGEST_WIDTH}")
        from polyhead.engine.cuda.norm_kernel import fused_add_norm  # Triton's language comes with torch for CUDA

        check_add_norm(fused_add_norm, width, dtype, device)
    except Exception as error:  # its compiler may raise anything: it needs a C compiler and a folder for its cache
        logger.warning("residual and layer norm are not fused: %r", error)
        return torch_add_norm
    return fused_add_norm


def torch_add_norm(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, rounded to the stream's dtype, and PyTorch's layer norm of it."""
    added = hidden + change
    return added, F.layer_norm(added, added.shape[-1:], eps=epsilon)


def check_add_norm(add_norm: AddNorm, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compares a function with float32 on rows that are hard: far from zero, nearly constant, constant and zero.

    Raises:
        AssertionError: it is further off than rounding to `dtype` explains.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, change = torch.randn(2, 37, width, generator=generator)
    hidden[:8] += 300.0
    hidden[8:16] *= 1e-3
    hidden[16:18], change[16:18] = 5.0, 0.25
    hidden[18], change[18] = 0.0, 0.0
    hidden, change = hidden.to(device, dtype), change.to(device, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7  # bf16 has steps of 2^-7 of a value, or finer
    for rows in (37, 1):
        added, normed = add_norm(hidden[:rows], change[:rows], 1e-5)
        exact = hidden[:rows].float() + change[:rows].float()
        for computed, expected in ((added, exact), (normed, F.layer_norm(exact, (width,), eps=1e-5))):
            torch.testing.assert_close(computed, expected.to(dtype), rtol=tolerance, atol=1e-3)
