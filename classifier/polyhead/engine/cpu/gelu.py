"""The tanh form of GELU, at a price that its matrix product can bear."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from polyhead.engine.cpu.kernels import KERNELS

_LINEAR = torch.tensor(math.sqrt(8 / math.pi))
_CUBIC = 0.044715 * math.sqrt(8 / math.pi)


def gelu_tanh(hidden: torch.Tensor) -> torch.Tensor:
    """GELU (Hendrycks and Gimpel 2016) as ``y * sigmoid(sqrt(8/pi) * (y + 0.044715 * y**3))``; may change its argument.

    The same function: ``1 + tanh(z) == 2 * sigmoid(2 * z)``. PyTorch's tanh costs a CPU several times its sigmoid.
    """
    if KERNELS:
        return KERNELS.gelu(hidden)
    if hidden.dtype == torch.bfloat16:
        # In bfloat16 each step of the form above rounds; the erf form, at most 4.7e-4 away, rounds once and is faster.
        return F.gelu(hidden)
    gate = torch.addcmul(_LINEAR, hidden, hidden, value=_CUBIC)
    return hidden.mul_(gate.mul_(hidden).sigmoid_())
