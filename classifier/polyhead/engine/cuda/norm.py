"""The residual stream on a GPU: embeds tokens, adds a layer's output, and normalises both for the next layer.

Each is one kernel (`norm_kernel`), because they only move memory. Gain and bias of a norm are part of the linear layer
that follows. A layer's own bias is added in its product, before that is rounded: where a bias undoes what the product
adds, rounding first would triple the error (docs/decisions/0007-engine.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

LARGEST_WIDTH = 16384  # of a row that one block of threads holds in registers
Pair = tuple[torch.Tensor, torch.Tensor]  # the stream and its norm, both (tokens, width)


@dataclass(frozen=True)
class StreamNorms:
    """The functions that write the residual stream and its norm.

    Attributes:
        name: in logs and measurements.
        embed: takes ids and positions (tokens,), the float32 tables of tokens and positions, epsilon, and the dtype of
            the stream.
        add: takes the stream and a change (tokens, width) of the same dtype, and epsilon.
    """

    name: str
    embed: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, torch.dtype], Pair]
    add: Callable[[torch.Tensor, torch.Tensor, float], Pair]


def norms_for(width: int, dtype: torch.dtype, device: torch.device) -> StreamNorms:
    """The fastest functions that are right on this device; logs a line if a GPU must use PyTorch's own kernels."""
    if device.type != "cuda":
        return TORCH_NORMS
    try:
        if width > LARGEST_WIDTH:
            raise ValueError(f"rows of {width} are wider than {LARGEST_WIDTH}")
        fused = triton_norms()
        check_norms(fused, width, dtype, device)
    except Exception as error:  # its compiler may raise anything: it needs a C compiler and a folder for its cache
        logger.warning("residual and layer norm are not fused: %r", error)
        return TORCH_NORMS
    return fused


def triton_norms() -> StreamNorms:
    """The kernels in Triton's language, which torch for CUDA brings; raises ImportError if it is missing."""
    from polyhead.engine.cuda.norm_kernel import fused_add, fused_embed

    return StreamNorms("Triton's kernels", fused_embed, fused_add)


def torch_embed(
    ids: torch.Tensor,
    positions: torch.Tensor,
    token_table: torch.Tensor,
    position_table: torch.Tensor,
    epsilon: float,
    dtype: torch.dtype,
) -> Pair:
    """The sum of embeddings in float32, rounded to `dtype`, and PyTorch's layer norm of it."""
    hidden = (F.embedding(ids, token_table) + F.embedding(positions, position_table)).to(dtype)
    return hidden, F.layer_norm(hidden, hidden.shape[-1:], eps=epsilon)


def torch_add(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> Pair:
    """The sum, rounded to the stream's dtype, and PyTorch's layer norm of it."""
    added = hidden + change
    return added, F.layer_norm(added, added.shape[-1:], eps=epsilon)


TORCH_NORMS = StreamNorms("PyTorch's kernels", torch_embed, torch_add)


def check_norms(norms: StreamNorms, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compares the functions with float32 on rows that are hard: far from zero, nearly constant, constant and zero.

    Raises:
        AssertionError: one is further off than rounding to `dtype` explains.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, change = torch.randn(2, 37, width, generator=generator)
    hidden[:8] += 300.0
    hidden[8:16] *= 1e-3
    hidden[16:18], change[16:18] = 5.0, 0.25
    hidden[18], change[18] = 0.0, 0.0
    # Embeddings: token 36 - n at position n.
    positions = torch.arange(37, dtype=torch.int32, device=device)
    tables = hidden.flip(0).to(device), change.to(device)
    _assert_near(
        norms.embed(36 - positions, positions, *tables, 1e-5, dtype), hidden.to(device) + change.to(device), dtype
    )
    hidden, change = hidden.to(device, dtype), change.to(device, dtype)
    for rows in (37, 1):
        _assert_near(
            norms.add(hidden[:rows], change[:rows], 1e-5), hidden[:rows].float() + change[:rows].float(), dtype
        )


def _assert_near(computed: Pair, exact: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7  # bf16 has steps of 2^-7 of a value, or finer
    for one, expected in zip(computed, (exact, F.layer_norm(exact, exact.shape[-1:], eps=1e-5)), strict=True):
        torch.testing.assert_close(one, expected.to(dtype), rtol=tolerance, atol=1e-3)
