"""The steps of training that have kernels of their own on a CPU, for autograd: products, attention, GELU and dropout.

Each draws the seed of its dropout from PyTorch's generator. So a resumed run and a recomputed block drop the same.
Without the kernels, on other devices, and for other types than float32 and bfloat16, PyTorch computes them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import pytorch_utils

from polyhead.engine.cpu.kernels.products import PRODUCTS, Products
from polyhead.engine.cpu.kernels.training import TYPES, AttentionOptions, TrainingKernels, training_kernels


def kernels_for(x: torch.Tensor) -> TrainingKernels | None:
    """The kernels, if they take this tensor."""
    return training_kernels() if x.device.type == "cpu" and x.dtype in TYPES else None


def attend_packed(
    kernels: TrainingKernels, qkv: torch.Tensor, starts: torch.Tensor, *, heads: int, scale: float, dropout: float,
    only_last: bool,
) -> torch.Tensor:  # fmt: skip
    """As `polyhead_training.model.attention.attend`, by the kernels."""
    options = AttentionOptions(heads, scale, dropout, _draw_seed() if dropout else 0, only_last)
    return _apply(_Attention, kernels, qkv, starts, options)


class Conv1D(pytorch_utils.Conv1D):
    """GPT-2's linear layer. The engine's own products compute packed rows in float32, and their gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(…, in)`` to ``(…, out)``."""
        is_packed = x.ndim == 2 and x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu"
        if PRODUCTS is None or not is_packed or torch.is_autocast_enabled("cpu"):
            return cast(torch.Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return _apply(_Product, PRODUCTS, x, self.weight, self.bias)


class GELU(nn.GELU):
    """The tanh form of GELU, which is transformers' ``gelu_new`` in one kernel."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape."""
        kernels = kernels_for(input)
        return super().forward(input) if kernels is None else _apply(_GELU, kernels, input)


class Dropout(nn.Dropout):
    """PyTorch's dropout, computed faster on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape."""
        kernels = kernels_for(input)
        if kernels is None or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        return _apply(_Dropout, kernels, input, self.p)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, products: Products, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return products.product(x, products.pack(weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        products, (_, needs_x, needs_weight, needs_bias) = ctx.products, ctx.needs_input_grad
        return (
            None,
            products.product(grad, products.pack(weight.t())) if needs_x else None,
            products.product(x.t(), products.pack(grad)) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: TrainingKernels, qkv: torch.Tensor, starts: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        ctx.save_for_backward(qkv, starts)
        ctx.kernels, ctx.options = kernels, options
        return kernels.attend(qkv, starts, options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, starts = ctx.saved_tensors
        return None, ctx.kernels.attend_backward(grad.contiguous(), qkv, starts, ctx.options), None, None


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: TrainingKernels, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return kernels.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        (x,) = ctx.saved_tensors
        return None, ctx.kernels.gelu_backward(grad.contiguous(), x)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: TrainingKernels, x: torch.Tensor, share: float) -> torch.Tensor:
        ctx.kernels, ctx.options = kernels, (share, _draw_seed())
        return kernels.dropout(x.contiguous(), *ctx.options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, ctx.kernels.dropout(grad.contiguous(), *ctx.options), None


def _apply(function: Any, *arguments: Any) -> torch.Tensor:
    return cast(torch.Tensor, function.apply(*arguments))


def _draw_seed() -> int:
    return int(torch.randint(2**32, ()))
