"""8 bits on the CPU: the engine's own products, on AMX's tiles or with VNNI, or oneDNN's; and quantising.

Weights have a scale per column, activations a scale per row. A scale per row, instead of one for all rows, keeps a
text's answer independent of the other texts. The residual, and what enters and leaves a layer, is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch

from polyhead.engine.cpu.float32 import Linear, gelu_tanh
from polyhead.engine.cpu.kernels import GELU_FLOOR, KERNELS
from polyhead.engine.cpu.kernels.amx import AMXProducts, Finish
from polyhead.engine.cpu.kernels.products import Products

DEVIATIONS = 3  # how many standard deviations a channel's largest value is taken to be from its mean
MOST_DOUBLINGS = 10  # of a channel


class QuantisedLinear(Linear, Protocol):
    """What `Int8GeluMLP` is made of."""

    bias: torch.Tensor

    def product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result ``(rows, out)`` before scales ``(rows,)`` and bias are applied."""

    def add_gelu_to(self, residual: torch.Tensor, gelu: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Adds the result for an input that `gelu_quantise` made."""


class Int8Linear:
    """The engine's own product with VNNI, on a weight that is packed once; scales, bias and residual in its pass."""

    def __init__(self, products: Products, weight: torch.Tensor, bias: torch.Tensor) -> None:
        quantised, scales = quantise_weight(weight)
        self.products, self.bias = products, bias.contiguous()
        self.panels = products.pack_int8(quantised, scales, bias, STEPS + 1)
        self.unfinished = replace(self.panels, bias=None)
        floored = floored_bias(bias, scales, quantised)
        self.after_gelu = replace(self.panels, bias=products.padded(floored), offsets=None)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` float32."""
        quantised, scales = quantise(x, STEPS)
        return self.products.product(quantised, self.panels, "store", out, scales)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The residual itself stays float32."""
        quantised, scales = quantise(x, STEPS)
        self.products.product(quantised, self.panels, "add", residual, scales)

    def add_gelu_to(self, residual: torch.Tensor, gelu: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Adds the result for an input that `gelu_quantise` made."""
        quantised, scales = gelu
        self.products.product(quantised, self.after_gelu, "add", residual, scales)

    def product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result ``(rows, out)`` before scales ``(rows,)`` and bias are applied."""
        quantised, scales = quantise(x, STEPS)
        return self.products.product(quantised, self.unfinished), scales


class OneDNNInt8Linear:
    """oneDNN's product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        quantised, self.scales = quantise_weight(weight)
        self.weight = torch.ops.onednn.qlinear_prepack(quantised.t().contiguous(), None)
        self.zeros = torch.zeros(len(bias), dtype=torch.int32)
        self.bias = bias.contiguous()
        self.floored_bias = floored_bias(bias, self.scales, quantised)

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


class Int8GeluMLP:
    """Two int8 products; one pass between them applies scale, bias and GELU, and quantises for the second."""

    def __init__(self, up: QuantisedLinear, down: QuantisedLinear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The same as `PlainMLP`, up to rounding."""
        product, scales = self.up.product(x)
        self.down.add_gelu_to(residual, gelu_quantise(product, scales, self.up.bias))


class AMXInt8Linear:
    """The engine's own product on AMX, on a weight that is packed once.

    Args:
        after_gelu: the input will be GELU's result, in an `AMXInt8MLP`.
    """

    def __init__(self, amx: AMXProducts, weight: torch.Tensor, bias: torch.Tensor, after_gelu: bool = False) -> None:
        self.amx = amx
        self.packed = amx.pack_int8(*quantise_weight(weight), bias, after_gelu)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` float32, or of the type of `out`, which may be bfloat16."""
        quantised, scales = quantise(x, STEPS)
        out = x.new_empty(len(x), self.packed.columns) if out is None else out
        finish: Finish = "to_bf16" if out.dtype == torch.bfloat16 else "to_float"
        return self.amx.product(quantised, self.packed, finish, out, scales)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The residual itself stays float32."""
        quantised, scales = quantise(x, STEPS)
        self.amx.product(quantised, self.packed, "add_float", residual, scales)


class AMXInt8MLP:
    """Both products, GELU's tanh form and quantising in one pass over the rows.

    What stands between the products has a scale per row and per 768 columns, so it is quantised in finer steps.
    """

    def __init__(self, up: AMXInt8Linear, down: AMXInt8Linear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The same as `Int8GeluMLP`, up to rounding."""
        quantised, scales = quantise(x, STEPS)
        self.up.amx.add_mlp(residual, quantised, self.up.packed, self.down.packed, scales)


# Without VNNI the product adds pairs in 16 bits, which only 7-bit activations cannot overflow.
STEPS = 127 if torch.cpu._is_vnni_supported() else 63


def even_channels(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """A block's tensors with evened channels: the block computes the same, and quantising loses less.

    A channel that is much larger than the others takes all steps of its row's scale. So each channel that enters
    ``c_attn``, ``c_fc`` or attention's ``c_proj`` is divided by a factor, and the rows of the weight are multiplied by
    it: half of the unevenness moves to the weight (SmoothQuant, Xiao et al. 2022, with strength 0.5). The division
    stands in the layer norm or in ``c_attn``'s value columns. Factors are powers of two, so no float32 is rounded.

    How large a channel gets is estimated without data. A layer norm's output has its bias as mean and its weight as
    standard deviation; a value's follow from both.
    """
    evened = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}

    def of(name: str) -> torch.Tensor:
        return evened[f"{prefix}.{name}"]

    def even(name: str, largest: torch.Tensor) -> torch.Tensor:
        """Multiplies the rows of a weight by factors ``(in,)``, which it returns."""
        weight = of(f"{name}.weight")
        ratio = (largest.clamp_min(1e-12) / weight.abs().amax(1).clamp_min(1e-12)).log2()
        factors = torch.exp2(((ratio - ratio.median()) / 2).clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS).round())
        evened[f"{prefix}.{name}.weight"] = weight * factors[:, None]
        return factors

    gain, bias = of("ln_1.weight"), of("ln_1.bias")
    values = slice(2 * len(gain), None)
    weight = of("attn.c_attn.weight")[:, values]
    mean = bias @ weight + of("attn.c_attn.bias")[values]
    factors = even("attn.c_proj", mean.abs() + DEVIATIONS * ((gain[:, None] * weight) ** 2).sum(0).sqrt())
    for name in ("weight", "bias"):
        whole = of(f"attn.c_attn.{name}").clone()
        whole[..., values] /= factors
        evened[f"{prefix}.attn.c_attn.{name}"] = whole
    for norm, name in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
        gain, bias = of(f"{norm}.weight"), of(f"{norm}.bias")
        factors = even(name, bias.abs() + DEVIATIONS * gain.abs())
        evened[f"{prefix}.{norm}.weight"], evened[f"{prefix}.{norm}.bias"] = gain / factors, bias / factors
    return evened


def quantise_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight ``(in, out)`` to int8 of the same shape, and scales ``(out,)``: a value is about ``q * scale``."""
    scales = weight.abs().amax(0).clamp_min(1e-12) / 127
    return (weight / scales).round().to(torch.int8).contiguous(), scales


def floored_bias(bias: torch.Tensor, scales: torch.Tensor, quantised: torch.Tensor) -> torch.Tensor:
    """The bias for inputs of `gelu_quantise`, which raises each by GELU_FLOOR: less what that adds to the result."""
    return bias - GELU_FLOOR * scales * quantised.sum(0)


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
