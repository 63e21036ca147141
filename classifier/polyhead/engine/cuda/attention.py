"""Attention over packed texts on a GPU, with the signature of PyTorch's ``varlen_attn`` (flash attention).

Flash attention takes 16-bit floats and heads whose width is a multiple of 8, up to 256, on sm_80 and newer.
``padded_attention`` computes everything else.
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
    """The fastest attention for these arguments; logs a line if that is not flash attention."""
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if is_new and dtype in (torch.bfloat16, torch.float16) and head_width % 8 == 0 and head_width <= 256:
        from torch.nn.attention.varlen import varlen_attn  # here, because the import is slow

        return cast(Attention, varlen_attn)
    logger.info(
        "attention pads groups of texts: no flash attention for %s heads of %d on %s", dtype, head_width, device
    )
    return padded_attention


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
