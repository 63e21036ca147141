"""Attention over packed texts on a GPU, with the signature of PyTorch's ``varlen_attn`` (flash attention).

Flash attention takes 16-bit floats and heads whose width is a multiple of 8, up to 256, on sm_80 and newer. If all
texts are short, `tile_attention` computes most of these heads instead. PyTorch's memory-efficient attention takes the
rest, float32 too. It also reads packed texts and never waits for the device. ``padded_attention`` computes what none of
them takes, and what is not on a GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F

from polyhead.engine.cuda.packed import SHORT
from polyhead.engine.micro_batch import similar_lengths

logger = logging.getLogger(__name__)

CAUSAL = (-1, 0)  # window: a token sees all tokens before it and none after it
FULL = (-1, -1)  # window: a token sees all tokens

GROUP_SLACK = 1.25  # a group's longest text is at most this many times its shortest
TILE_WIDTHS = (16, 32, 64, 128)  # heads that `tile_attention` takes

Attention = Callable[..., torch.Tensor]  # with `padded_attention`'s arguments


def attention_for(head_width: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """The fastest attention for these arguments; logs a line if a faster one does not work or texts must be padded."""
    if takes_flash(head_width, dtype, device):
        from torch.nn.attention.varlen import varlen_attn  # here, because the import is slow

        flash = cast(Attention, varlen_attn)
        short = short_attention(head_width, dtype, device)
        return AttentionByLength(short, flash) if short else flash
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


def short_attention(head_width: int, dtype: torch.dtype, device: torch.device) -> Attention | None:
    """`tile_attention`, tried on this device; None if it is wrong or cannot be compiled (logged), or is turned off.

    ``POLYHEAD_TILE_ATTENTION=off`` turns it off.
    """
    if head_width not in TILE_WIDTHS or os.environ.get("POLYHEAD_TILE_ATTENTION") == "off":
        return None
    try:
        from polyhead.engine.cuda.attention_kernel import tile_attention  # here, because torch for CPUs has no Triton
    except Exception as error:
        logger.warning("tile_attention is not used: %r", error)
        return None
    return tile_attention if is_attention(tile_attention, head_width, dtype, device) else None


class AttentionByLength:
    """Two attentions: `short` computes if no text may have more than `SHORT` tokens, else `long`.

    A graph has room for texts of a certain length, so it records one of them.
    """

    def __init__(self, short: Attention, long: Attention) -> None:
        self.short, self.long = short, long
        self.__name__ = f"{short.__name__} up to {SHORT} tokens, {long.__name__} above"

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        **options: Any,
    ) -> torch.Tensor:
        """As `padded_attention`."""
        attention = self.short if max_k <= SHORT else self.long
        return attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)


def is_attention(attention: Attention, head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a function computes attention here; if not, the log says why."""
    try:
        check_attention(attention, head_width, dtype, device)
    except Exception as error:  # Triton's compiler may raise anything: it needs a C compiler and a folder for its cache
        logger.warning("%s is not used: %r", getattr(attention, "__name__", attention), error)
        return False
    return True


def check_attention(attention: Attention, head_width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compares a function with attention in float32, on three texts and a spare one.

    Raises:
        AssertionError: it is further off than rounding to `dtype` explains.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(196, 3, 2, head_width, generator=generator).to(device, dtype).unbind(1)
    exact = partial(padded_attention, query.float(), key.float(), value.float())
    starts = torch.tensor([0, 1, 64, 194, 194], dtype=torch.int32, device=device)
    lasts = torch.tensor([0, 1, 2, 3, 3], dtype=torch.int32, device=device)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for rows, places, longest, window in ((194, starts, 130, CAUSAL), (3, lasts, 1, FULL)):
        texts = (places, starts, longest, 130)
        computed = attention(query, key, value, *texts, scale=0.2, window_size=window)[:rows]
        expected = exact(*texts, scale=0.2, window_size=window)[:rows]
        torch.testing.assert_close(computed.float(), expected, rtol=tolerance, atol=tolerance)


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
