"""GPT-2's body as its config describes it: which tensors it has, and what its layers compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator

from polyhead.errors import CheckpointError

Activation = Callable[[torch.Tensor], torch.Tensor]

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")

# By the names that transformers gives them.
ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(TANH_GELU, partial(F.gelu, approximate="tanh")),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class Body(BaseModel):
    """The fields of a GPT-2 config that decide what the body computes; only transformers reads the others."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    model_type: Literal["gpt2"] = "gpt2"
    vocab_size: int = Field(gt=0)
    n_positions: int = Field(gt=0)
    n_embd: int = Field(gt=0)
    n_layer: int = Field(gt=0)
    n_head: int = Field(gt=0)
    n_inner: int | None = Field(default=None, gt=0)
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: Literal[False] = False

    @model_validator(mode="after")
    def _check(self) -> Body:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        return self

    @property
    def inner_width(self) -> int:
        """Channels between the two matrices of the MLP."""
        return self.n_inner or 4 * self.n_embd

    @property
    def has_tanh_gelu(self) -> bool:
        """Whether the activation is the tanh form of GELU, for which the engine has faster code."""
        return self.activation_function in TANH_GELU

    def activation(self) -> Activation:
        """The MLP's activation function.

        Raises:
            CheckpointError: the engine has no function of that name.
        """
        if self.activation_function not in ACTIVATIONS:
            raise CheckpointError(
                f"activation_function must be one of {sorted(ACTIVATIONS)}, got {self.activation_function!r}"
            )
        return ACTIVATIONS[self.activation_function]

    def attention_scale(self, layer: int) -> float:
        """The factor of the query-key products in block `layer`."""
        scale = 1 / math.sqrt(self.n_embd // self.n_head) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The body's tensors by their names in transformers' ``GPT2Model``; its Conv1D weights are (in, out).

        They come one by one, because a config may name a billion layers that do not exist.
        """
        width, inner = self.n_embd, self.inner_width
        yield "wte.weight", (self.vocab_size, width)
        yield "wpe.weight", (self.n_positions, width)
        block: dict[str, tuple[int, ...]] = {
            "ln_1.weight": (width,), "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width), "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width), "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, inner), "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, width), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        for layer in range(self.n_layer):
            for name, shape in block.items():
                yield f"h.{layer}.{name}", shape
        yield "ln_f.weight", (width,)
        yield "ln_f.bias", (width,)
