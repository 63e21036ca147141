"""Which product computes a linear layer: for each precision, the fastest that this processor and this model allow.

ARCHITECTURE.md has the table. The code of a precision, its kernels and its fallback stand together in `float32`,
`bfloat16` and `int8`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from polyhead.body import Body
from polyhead.engine.cpu.attention import has_amx_attention
from polyhead.engine.cpu.bfloat16 import AMXBfloat16Linear, AMXBfloat16MLP, OneDNNBfloat16Linear
from polyhead.engine.cpu.float32 import MLP, BLASLinear, GeluMLP, Linear, PackedLinear, PlainMLP, gelu_tanh
from polyhead.engine.cpu.int8 import (
    AMXInt8Linear,
    AMXInt8MLP,
    Int8GeluMLP,
    Int8Linear,
    OneDNNInt8Linear,
    QuantisedLinear,
)
from polyhead.engine.cpu.kernels.amx import AMX, MULTIPLE, AMXProducts
from polyhead.engine.cpu.kernels.products import PRODUCTS, Products
from polyhead.heads import BUILT_IN
from polyhead.precision import Precision

# Without the engine's own products.
LINEARS: dict[Precision, Callable[[torch.Tensor, torch.Tensor], Linear]] = {
    "fp32": BLASLinear,
    "bf16": OneDNNBfloat16Linear,
}

BLOCKS_PER_KEPT = 4  # on AMX one in four of an int8 model's blocks, the first ones, stays in bf16


def amx_for(body: Body) -> AMXProducts | None:
    """The products on AMX, if this processor has them and all of a model's weights fit their tiles."""
    return AMX if body.n_embd % MULTIPLE == 0 and body.inner_width % MULTIPLE == 0 else None


def attention_dtype(precision: Precision, body: Body) -> torch.dtype:
    """The type of queries, keys and values: bfloat16 in `bf16`, and in `int8` if all of a block runs on AMX."""
    is_on_amx = amx_for(body) is not None and has_amx_attention(body)
    return torch.bfloat16 if precision == "bf16" or (precision == "int8" and is_on_amx) else torch.float32


def block_precision(precision: Precision, layer: int, body: Body) -> Precision:
    """bf16 for the first quarter of the blocks of an int8 model on AMX.

    The residual is smallest there, so an error is largest beside it, and all later blocks read it. Without AMX these
    blocks would cost a sixth of the speed (docs/decisions/0007-engine.md).
    """
    is_kept = precision == "int8" and amx_for(body) is not None and layer < body.n_layer // BLOCKS_PER_KEPT
    return "bf16" if is_kept else precision


def make_linear(precision: Precision, body: Body, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """A linear layer of float32 `weight` ``(in, out)`` and `bias` ``(out,)``."""
    amx = amx_for(body)
    if amx and precision == "bf16":
        return AMXBfloat16Linear(amx, weight, bias)
    if amx and precision == "int8":
        return AMXInt8Linear(amx, weight, bias)
    if precision == "int8":
        return _int8_linear(weight, bias)
    return _packed_linear(precision, weight, bias) or LINEARS[precision](weight, bias)


def _packed_linear(precision: Precision, weight: torch.Tensor, bias: torch.Tensor) -> PackedLinear | None:
    """The engine's own product of floats on vectors, if this processor has the instructions."""
    if PRODUCTS and precision == "fp32":
        return PackedLinear(PRODUCTS, weight, bias)
    if PRODUCTS and precision == "bf16" and multiplies_short_values(len(weight)):
        return PackedLinear(PRODUCTS, weight, bias, torch.bfloat16)
    return None


def _int8_linear(weight: torch.Tensor, bias: torch.Tensor) -> QuantisedLinear:
    if PRODUCTS and multiplies_short_values(len(weight)):
        return Int8Linear(PRODUCTS, weight, bias)
    return OneDNNInt8Linear(weight, bias)


def multiplies_short_values(inner: int) -> bool:
    """Whether the engine's own products on vectors take bfloat16 and 8 bits here, for weights of so many rows.

    On AMX oneDNN's are faster, for widths that the engine's own do not take there.
    """
    return (
        PRODUCTS is not None and PRODUCTS.has_short_values and inner % 4 == 0 and not torch.cpu._is_amx_tile_supported()
    )


Weights = tuple[torch.Tensor, torch.Tensor]  # weight and bias of a linear layer


def make_mlp(precision: Precision, body: Body, up: Weights, down: Weights) -> MLP:
    """The fastest MLP of these weights; raises CheckpointError if the engine does not know the activation."""
    amx = amx_for(body) if body.has_tanh_gelu else None
    if amx and precision == "bf16":
        return AMXBfloat16MLP(AMXBfloat16Linear(amx, *up), AMXBfloat16Linear(amx, *down))
    if amx and precision == "int8":
        return AMXInt8MLP(AMXInt8Linear(amx, *up), AMXInt8Linear(amx, *down, after_gelu=True))
    if body.has_tanh_gelu and precision == "int8":
        return Int8GeluMLP(_int8_linear(*up), _int8_linear(*down))
    own = _packed_linear(precision, *up) if body.has_tanh_gelu else None
    if own:
        return GeluMLP(own, make_linear(precision, body, *down))
    activation = gelu_tanh if body.has_tanh_gelu else body.activation()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return PlainMLP(make_linear(precision, body, *up), make_linear(precision, body, *down), activation, dtype)


class _HeadLinear(nn.Module):
    """A head's linear layer, computed by the engine's own product."""

    def __init__(self, layer: nn.Linear, products: Products) -> None:
        super().__init__()
        bias = None if layer.bias is None else layer.bias.detach()
        self.linear = PackedLinear(products, layer.weight.detach().t(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 ``(rows, out)``."""
        return self.linear(x)


def fast_head(head: nn.Module) -> nn.Module:
    """A built-in head with the engine's own float32 products; another class as it is."""
    if PRODUCTS is None or type(head) not in BUILT_IN.values():
        return head
    if isinstance(head, nn.Linear):
        return _HeadLinear(head, PRODUCTS)
    for name, layer in list(head.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(head, name, _HeadLinear(layer, PRODUCTS))
    return head


def has_stable_products(precision: Precision, body: Body) -> bool:
    """Whether all products, a built-in head's too, give a row the same bits with any number of other rows.

    The engine's own do: they add up in one order. oneDNN's sums in int8 are whole numbers, so their order does not
    matter; its bf16 product fails on AMX, and BLAS's on Intel processors. See docs/decisions/0017-batch-invariance.md.
    """
    if PRODUCTS is None:
        return False
    widths = body.n_embd, body.inner_width
    is_own = amx_for(body) is not None or all(multiplies_short_values(width) for width in widths)
    return precision != "bf16" or is_own
