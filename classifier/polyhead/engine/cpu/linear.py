"""Linear layers on the CPU, one class a precision; weights are laid out once, at load."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from polyhead.engine.cpu.kernels import GELU_FLOOR
from polyhead.engine.cpu.quantise import STEPS, quantise, rescale


class Linear(Protocol):
    """``x @ weight + bias`` for ``x`` ``(rows, in)``."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)``, written to `out` if it is given."""
        ...

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the result to `residual` ``(rows, out)`` in place."""
        ...


class Float32Linear:
    """BLAS on the weight as GPT-2 stores it, ``(in, out)``."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight.contiguous()
        self.bias = bias

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` float32."""
        return torch.addmm(self.bias, x, self.weight, out=out)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """One pass: BLAS adds to what is there."""
        residual.add_(self.bias).addmm_(x, self.weight)


class Bfloat16Linear:
    """oneDNN on weights packed for its bfloat16 kernels; where the CPU has none, PyTorch's own kernel, slowly."""

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
    """oneDNN on int8 weights, one scale a column, and activations quantised a row at a time, as each row needs.

    A scale a row, not one for all rows, keeps a text's answer independent of what stands beside it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        columns = weight.t().contiguous()  # (out, in)
        self.scales = columns.abs().amax(1).clamp_min(1e-12) / 127  # (out,)
        quantised = (columns / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.zeros = torch.zeros(len(columns), dtype=torch.int32)
        self.bias = bias.contiguous()
        # What all inputs of GELU_FLOOR less would add, for an input that was raised by as much.
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
        """The result ``(rows, out)`` before scales ``(rows,)`` and bias."""
        quantised, scales = quantise(x, STEPS)
        return self._multiply(quantised, STEPS + 1), scales

    def _multiply(self, quantised: torch.Tensor, zero_point: int) -> torch.Tensor:
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, zero_point, self.weight, self.scales, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product
