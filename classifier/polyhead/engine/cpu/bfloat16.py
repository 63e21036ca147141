"""bfloat16 on the CPU: the engine's own products on AMX's tiles, or oneDNN's. Those on vectors are `PackedLinear`.

Inputs and results have the residual's type: bfloat16, or float32 in the blocks that `int8` keeps in bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from polyhead.engine.cpu.kernels.amx import AMXProducts, Finish


class OneDNNBfloat16Linear:
    """oneDNN on weights packed for its bfloat16 kernels; on a CPU without bfloat16, PyTorch's own slow kernel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight.t().contiguous().bfloat16()  # (out, in)
        self.bias = bias.bfloat16()
        self.is_packed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` of the type of `out`, or of `x`."""
        rows = x.bfloat16()
        if self.is_packed:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        else:
            result = F.linear(rows, self.weight, self.bias)
        return result.to(x.dtype) if out is None else out.copy_(result)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The sum is rounded once more, to the residual's type."""
        residual.add_(self(x))


class AMXBfloat16Linear:
    """The engine's own product on AMX, on a weight that is packed once; bias and residual are added in float32."""

    def __init__(self, amx: AMXProducts, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.amx = amx
        self.packed = amx.pack_bf16(weight, bias)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` of the type of `out`, or of `x`."""
        out = x.new_empty(len(x), self.packed.columns) if out is None else out
        finish: Finish = "to_bf16" if out.dtype == torch.bfloat16 else "to_float"
        return self.amx.product(x.bfloat16(), self.packed, finish, out)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The sum is rounded once, to the residual's type."""
        finish: Finish = "add_bf16" if residual.dtype == torch.bfloat16 else "add_float"
        self.amx.product(x.bfloat16(), self.packed, finish, residual)


class AMXBfloat16MLP:
    """Both products and GELU's tanh form in one pass over the rows."""

    def __init__(self, up: AMXBfloat16Linear, down: AMXBfloat16Linear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """The same as `PlainMLP`, up to rounding."""
        self.up.amx.add_mlp(residual, x.bfloat16(), self.up.packed, self.down.packed)
