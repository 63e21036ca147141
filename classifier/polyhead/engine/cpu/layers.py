"""Linear layers, GELU and the MLP on the CPU: for each precision its products, its kernels and their fallback.

A layer computes ``x @ weight + bias`` for ``x`` ``(rows, in)``; it fills `out` if that is given, and `add_to` adds it
to a residual ``(rows, out)`` in place. Weights are laid out once, at load. If no kernels were compiled (`KERNELS` is
None), PyTorch's operations compute the same, more slowly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from polyhead.body import Activation, Body
from polyhead.engine.cpu.kernels import GELU_FLOOR, KERNELS
from polyhead.precision import Precision


class Float32Linear:
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


class Bfloat16Linear:
    """oneDNN on weights packed for its bfloat16 kernels; on a CPU without bfloat16, PyTorch's own slow kernel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight.t().contiguous().bfloat16()  # (out, in)
        self.bias = bias.bfloat16()
        self.is_packed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` bfloat16."""
        if self.is_packed:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        else:
            result = F.linear(x, self.weight, self.bias)
        return result if out is None else out.copy_(result)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The sum is rounded once more, to bfloat16."""
        residual.add_(self(x))


class Int8Linear:
    """oneDNN on int8 weights with a scale per column, and on activations that are quantised with a scale per row.

    A scale per row, instead of one for all rows, keeps a text's answer independent of the other texts.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        columns = weight.t().contiguous()  # (out, in)
        self.scales = columns.abs().amax(1).clamp_min(1e-12) / 127  # (out,)
        quantised = (columns / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.zeros = torch.zeros(len(columns), dtype=torch.int32)
        self.bias = bias.contiguous()
        # `gelu_quantise` raises every input by GELU_FLOOR; this bias subtracts what that adds to the result.
        self.floored_bias = bias - GELU_FLOOR * self.scales * quantised.sum(1)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` float32."""
        product, scales = self.product(x)
        return rescale(product, scales, self.bias, product if out is None else out)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The residual itself stays float32."""
        product, scales = self.product(x)
        rescale(product, scales, self.bias, residual, adds=True)

    def add_gelu_to(self, residual: torch.Tensor, gelu: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Adds the result for an input that `gelu_quantise` made."""
        quantised, scales = gelu
        rescale(self._multiply(quantised, 0), scales, self.floored_bias, residual, adds=True)

    def product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result ``(rows, out)`` before scales ``(rows,)`` and bias are applied."""
        quantised, scales = quantise(x, STEPS)
        return self._multiply(quantised, STEPS + 1), scales

    def _multiply(self, quantised: torch.Tensor, zero_point: int) -> torch.Tensor:
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, zero_point, self.weight, self.scales, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product


Linear = Float32Linear | Bfloat16Linear | Int8Linear
LINEARS: dict[Precision, type[Linear]] = {
    "fp32": Float32Linear,
    "bf16": Bfloat16Linear,
    "int8": Int8Linear,
}


class PlainMLP:
    """A block's MLP: the activation between two linear layers."""

    def __init__(self, up: Linear, down: Linear, activation: Activation) -> None:
        self.up, self.down, self.activation = up, down, activation

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the result for `x` ``(rows, n_embd)`` to `residual` of the same shape."""
        self.down.add_to(residual, self.activation(self.up(x)))


class Int8GeluMLP:
    """Two int8 products; one pass between them applies scale, bias and GELU, and quantises for the second."""

    def __init__(self, up: Int8Linear, down: Int8Linear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The same as `PlainMLP`, up to rounding."""
        product, scales = self.up.product(x)
        self.down.add_gelu_to(residual, gelu_quantise(product, scales, self.up.bias))


def make_mlp(up: Linear, down: Linear, body: Body) -> PlainMLP | Int8GeluMLP:
    """The fastest MLP for these layers; raises CheckpointError if the engine does not know the activation."""
    if body.has_tanh_gelu and isinstance(up, Int8Linear) and isinstance(down, Int8Linear):
        return Int8GeluMLP(up, down)
    return PlainMLP(up, down, gelu_tanh if body.has_tanh_gelu else body.activation())


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


# Without VNNI the product adds pairs in 16 bits, which only 7-bit activations cannot overflow.
STEPS = 127 if torch.cpu._is_vnni_supported() else 63


def quantise(x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``(rows, columns)`` to uint8, and scales ``(rows,)``: a value is about ``(q - (steps + 1)) * scale``."""
    if KERNELS:
        return KERNELS.quantise(x, steps)
    largest = x.abs().amax(1, keepdim=True).clamp_min_(1e-12)  # (rows, 1)
    # Half a step is added because the conversion truncates. PyTorch has no fast conversion from float to uint8.
    quantised = (x * (steps / largest)).add_(steps + 1.5).to(torch.int16).to(torch.uint8)
    return quantised, largest[:, 0] / steps


def gelu_quantise(product: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU of ``product * scales[:, None] + bias`` to uint8 and scales: a value is about ``q * scale - GELU_FLOOR``.

    GELU is never below ``-GELU_FLOOR``, so all levels serve values that occur, and a step is half as large.
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
    """Stores ``product * scales[:, None] + bias`` in `out`, or adds it to `out`."""
    if KERNELS:
        return KERNELS.rescale(product, scales, bias, out, adds)
    if adds:
        return out.add_(torch.addcmul(bias, product, scales[:, None]))
    return torch.addcmul(bias, product, scales[:, None], out=out)
