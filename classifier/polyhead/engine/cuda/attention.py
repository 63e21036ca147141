"""Attention over packed texts on a GPU, with the signature of PyTorch's ``varlen_attn`` (flash attention).

Flash attention takes 16-bit floats and heads whose width is a multiple of 8, up to 256, on sm_80 and newer.
PyTorch's memory-efficient attention takes the rest, float32 too. It also reads packed texts and never waits for the
device. ``padded_attention`` computes what neither takes, and what is not on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F

from polyhead.engine.micro_batch import similar_lengths

logger = logging.getLogger(__name__)

CAUSAL = (-1, 0)  # window: a token sees all tokens before it and none after it
FULL = (-1, -1)  # window: a token sees all tokens

GROUP_SLACK = 1.25  # a group's longest text is at most this many times its shortest


Attention = Callable[..., torch.Tensor]  # with `padded_attention`'s arguments


def attention_for(head_width: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """The fastest attention for these arguments; logs a line if packed texts must be padded."""
    if takes_flash(head_width, dtype, device):
        from torch.nn.attention.varlen import varlen_attn  # here, because the import is slow

        return cast(Attention, varlen_attn)
    if device.type == "cuda" and is_attention(efficient_attention, head_width, dtype, device):
        return efficient_attention
    logger.warning(
        "attention pads groups of texts and waits for the device: no packed attention for %s heads of %d on %s",
        dtype, head_width, device,
    )  # fmt: skip
    return padded_attention


def takes_flash(head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether flash attention takes such heads on this device."""
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_new and dtype in (torch.bfloat16, torch.float16) and head_width % 8 == 0 and head_width <= 256


def is_attention(attention: Attention, head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a function computes attention here, found by trying it on three short texts."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 40, 2, head_width, generator=generator).to(device, dtype)
    starts = torch.tensor([0, 1, 8, 40], dtype=torch.int32, device=device)
    lasts = torch.tensor([0, 1, 2, 3], dtype=torch.int32, device=device)
    try:
        for rows, places, longest, window in ((40, starts, 32, CAUSAL), (3, lasts, 1, FULL)):
            arguments = (query[:rows], key, value, places, starts, longest, 32)
            computed = attention(*arguments, scale=0.2, window_size=window)
            expected = padded_attention(*arguments, scale=0.2, window_size=window)
            tolerance = 1e-4 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(computed, expected, rtol=tolerance, atol=tolerance)
    except (AssertionError, RuntimeError, TypeError) as error:
        logger.warning("%s is not used: %s", getattr(attention, "__name__", attention), error)
        return False
    return True


def efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    dropout: float = 0.0,
) -> torch.Tensor:
    """As `padded_attention`, by PyTorch's memory-efficient kernel (CUTLASS), on a GPU only.

    Args:
        dropout: the share of attention weights that are dropped, in training.
    """
    mask_type = 1 if window_size == CAUSAL else 0  # 1: a query sees keys up to its own place
    attended = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, cu_seq_q, cu_seq_k, max_q, max_k, dropout, mask_type,
        query.requires_grad, scale=scale,
    )[0]  # fmt: skip
    return cast(torch.Tensor, attended[0])


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Attention of packed queries to packed keys and values; each text attends only to itself.

    Pads texts of similar length to the longest. Waits for the device to read the lengths.

    Args:
        query: (queries, heads, width)
        key: (tokens, heads, width)
        value: (tokens, heads, width)
        cu_seq_q: int32 (texts + 1,), the row where each text's queries start, and the row where the last text ends.
        cu_seq_k: the same for keys and values.
        max_q: the most queries that a text may have.
        max_k: the most keys that a text may have.
        scale: factor of the scores before the softmax.
        window_size: ``CAUSAL`` or ``FULL``.

    Returns:
        (queries, heads, width); rows that belong to no text may hold anything, with flash attention also NaN.
    """
    attended = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    lengths_q, lengths_k = cu_seq_q.diff(), cu_seq_k.diff()
    real = [length for length in lengths_k.tolist() if length]  # spare texts have no tokens and come last
    for first, end in similar_lengths(real, GROUP_SLACK):
        texts = slice(first, end)
        rows_q, real_q = _rows(cu_seq_q[texts], lengths_q[texts])
        rows_k, real_k = _rows(cu_seq_k[texts], lengths_k[texts])
        causal = window_size == CAUSAL  # then no real token sees a pad, because pads are to its right
        context = F.scaled_dot_product_attention(
            query[rows_q].transpose(1, 2),  # (texts, heads, longest, width)
            key[rows_k].transpose(1, 2),
            value[rows_k].transpose(1, 2),
            attn_mask=None if causal else real_k[:, None, None, :],
            is_causal=causal,
            scale=scale,
        )
        attended[rows_q[real_q]] = context.transpose(1, 2)[real_q]
    return attended


def _rows(starts: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed rows of texts (texts, longest), and which of them are real; a pad repeats its text's last row."""
    places = torch.arange(int(lengths.max()), device=starts.device)
    rows = starts[:, None] + torch.minimum(places, lengths[:, None] - 1)
    return rows, places < lengths[:, None]
