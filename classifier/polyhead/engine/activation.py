"""Activation functions of GPT-2's MLP, by the names that transformers gives them.

Each may overwrite its argument, which no one else reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from polyhead.errors import CheckpointError

Activation = Callable[[torch.Tensor], torch.Tensor]

_LINEAR = torch.tensor(math.sqrt(8 / math.pi))
_CUBIC = 0.044715 * math.sqrt(8 / math.pi)


def gelu_tanh(hidden: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel 2016), as ``y * sigmoid(sqrt(8/pi) * (y + 0.044715 * y**3))``.

    The same function: ``1 + tanh(z) == 2 * sigmoid(2 * z)``. PyTorch's tanh costs a CPU several times its sigmoid.
    """
    if hidden.dtype == torch.bfloat16:
        # In bfloat16 each step of the form above rounds; the erf form, at most 4.7e-4 away, rounds once and is faster.
        return F.gelu(hidden)
    gate = torch.addcmul(_LINEAR, hidden, hidden, value=_CUBIC)
    return hidden.mul_(gate.mul_(hidden).sigmoid_())


ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": torch.relu_,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh_,
}


def activation_named(name: str) -> Activation:
    """The function of that name; raises CheckpointError if the engine has none."""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"activation_function must be one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
