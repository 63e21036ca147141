"""float32 on the CPU: the engine's own products or BLAS's, layer norm, GELU, and MLPs of any two linear layers.

A layer computes ``x @ weight + bias`` for ``x`` ``(rows, in)``; it fills `out` if that is given, and `add_to` adds it
to a residual ``(rows, out)`` in place. Weights are laid out once, at load. If no kernels were compiled (`KERNELS` is
None), PyTorch's operations compute the same, more slowly.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F

from polyhead.body import Activation
from polyhead.engine.cpu.kernels import KERNELS
from polyhead.engine.cpu.kernels.products import Products


class Linear(Protocol):
    """A linear layer of any precision."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)``."""

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the result to `residual` in place."""


class MLP(Protocol):
    """A block's MLP: the activation between two linear layers."""

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the result for `x` ``(rows, n_embd)`` to `residual` of the same shape."""


class PackedLinear:
    """The engine's own product in float32 or bfloat16, on a weight that is packed once.

    Bias, GELU and residual are added in float32.
    """

    def __init__(
        self,
        products: Products,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.products, self.panels = products, products.pack(weight, bias, dtype)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` of the type of `x`."""
        return self.products.product(x, self.panels, "store", out)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The sum is rounded once."""
        self.products.product(x, self.panels, "add", residual)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The tanh form of GELU of the result, in the same pass."""
        return self.products.product(x, self.panels, "gelu")


class BLASLinear:
    """BLAS on the weight as GPT-2 stores it, ``(in, out)``."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight.contiguous()
        self.bias = bias

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` float32."""
        return torch.addmm(self.bias, x, self.weight, out=out)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """One pass: BLAS adds to the values that `residual` holds."""
        residual.add_(self.bias).addmm_(x, self.weight)


class LayerNorm:
    """Layer norm of float32 or bfloat16 rows; the statistics are float32.

    Args:
        weight, bias: float32 ``(n_embd,)``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> None:
        self.weight, self.bias, self.epsilon = weight.contiguous(), bias.contiguous(), epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape ``(rows, n_embd)`` and type of `x`."""
        if KERNELS:
            return KERNELS.layer_norm(x, self.weight, self.bias, self.epsilon)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class PlainMLP:
    """One operation after the other; `dtype` is that of what stands between the layers."""

    def __init__(self, up: Linear, down: Linear, activation: Activation, dtype: torch.dtype = torch.float32) -> None:
        self.up, self.down, self.activation, self.dtype = up, down, activation, dtype

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the result for `x` ``(rows, n_embd)`` to `residual` of the same shape."""
        self.down.add_to(residual, self.activation(self.up(x.to(self.dtype))))


class GeluMLP:
    """Two products, of which the first applies GELU's tanh form in its own pass."""

    def __init__(self, up: PackedLinear, down: Linear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The same as `PlainMLP`, up to rounding."""
        self.down.add_to(residual, self.up.gelu(x))


_GATE_SLOPE = torch.tensor(math.sqrt(8 / math.pi))
_GATE_CUBIC = 0.044715 * math.sqrt(8 / math.pi)


def gelu_tanh(hidden: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel 2016); may overwrite its argument.

    Without kernels it is computed as ``y * sigmoid(sqrt(8/pi) * (y + 0.044715 * y**3))``. That is the same function,
    because ``1 + tanh(z) == 2 * sigmoid(2 * z)``. PyTorch's tanh takes a CPU several times as long as its sigmoid.
    """
    if KERNELS:
        return KERNELS.gelu(hidden)
    if hidden.dtype == torch.bfloat16:
        # In bfloat16 each step of the form above rounds. The erf form, at most 4.7e-4 away, rounds once and is faster.
        return F.gelu(hidden)
    gate = torch.addcmul(_GATE_SLOPE, hidden, hidden, value=_GATE_CUBIC)
    return hidden.mul_(gate.mul_(hidden).sigmoid_())
