"""A block's MLP on the CPU: up, activation, down, added to the residual stream."""

from __future__ import annotations

from typing import Protocol

import torch

from polyhead.engine.activation import TANH_GELU, Activation, activation_named
from polyhead.engine.cpu.gelu import gelu_tanh
from polyhead.engine.cpu.linear import Int8Linear, Linear
from polyhead.engine.cpu.quantise import gelu_quantise


class MLP(Protocol):
    """Any of them."""

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the MLP of `x` ``(rows, n_embd)`` to `residual`, which is alike."""
        ...


class PlainMLP:
    """The activation between two linear layers."""

    def __init__(self, up: Linear, down: Linear, activation: Activation) -> None:
        self.up, self.down, self.activation = up, down, activation

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """One layer after the other."""
        self.down.add_to(residual, self.activation(self.up(x)))


class Int8GeluMLP:
    """Between two int8 products: scale, bias, GELU and the next quantising in one pass."""

    def __init__(self, up: Int8Linear, down: Int8Linear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """As `PlainMLP`, but for the rounding."""
        product, scales = self.up.product(x)
        self.down.add_gelu_to(residual, gelu_quantise(product, scales, self.up.bias))


def mlp(up: Linear, down: Linear, activation: str) -> MLP:
    """The quickest for these layers; raises CheckpointError if the engine has no such activation."""
    if activation in TANH_GELU and isinstance(up, Int8Linear) and isinstance(down, Int8Linear):
        return Int8GeluMLP(up, down)
    return PlainMLP(up, down, gelu_tanh if activation in TANH_GELU else activation_named(activation))
