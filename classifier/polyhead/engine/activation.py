"""Activation functions of GPT-2's MLP, by the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from polyhead.errors import CheckpointError

Activation = Callable[[torch.Tensor], torch.Tensor]

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")

ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(TANH_GELU, partial(F.gelu, approximate="tanh")),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation_named(name: str) -> Activation:
    """The function of that name; raises CheckpointError if the engine has none."""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"activation_function must be one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
