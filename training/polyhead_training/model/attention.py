"""Attention over a packed batch in training, with dropout: one call per layer, by a kernel that reads packed texts.

A GPU's kernels read all texts from one tensor. A call per length would launch hundreds of small kernels, and wait for
the lengths. PyTorch differentiates the kernels of flash and of memory-efficient attention. They draw their dropout from
the device's generator, so a recomputed block drops the same weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F

from polyhead.engine.cuda.attention import CAUSAL, FULL, efficient_attention, is_attention, takes_flash
from polyhead_training.model.cpu import attend_packed, kernels_for

logger = logging.getLogger(__name__)

PackedAttention = Callable[..., torch.Tensor]  # with `flash_attention`'s arguments


class PackedBatch:
    """Where the texts of a packed batch are; rows are computed on the device of `lengths`, without waiting for it.

    Args:
        lengths: int64 (n,), the tokens of each text.
        tokens: of all texts.
        longest: no text has more tokens than this.

    Attributes:
        last: int64 (n,), the row of each text's last token.
        positions: int64 (tokens,), each token's position in its text.
        starts: int32 (n + 1,), the row where each text starts, and the row where the last text ends.
        queries: int32 (n + 1,), the same if each text has one row, for its last token.
    """

    def __init__(self, lengths: torch.Tensor, tokens: int, longest: int) -> None:
        self._lengths = lengths
        self.longest = longest
        ends = lengths.cumsum(0)
        self.last = ends - 1
        first = torch.repeat_interleave(ends - lengths, lengths, output_size=tokens)
        self.positions = torch.arange(tokens, device=lengths.device) - first
        self.starts = F.pad(ends, (1, 0)).to(torch.int32)
        self.queries = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(texts, length) of neighbours of one length. Waits for the device."""
        return [(len(list(run)), length) for length, run in groupby(self._lengths.tolist())]


def attend(
    qkv: torch.Tensor, texts: PackedBatch, *, heads: int, scale: float, dropout: float, only_last: bool
) -> torch.Tensor:
    """Attention of each token to the tokens of its text up to itself.

    Args:
        qkv: ``(tokens, 3 * heads * width)``.
        scale: factor of the scores before the softmax.
        dropout: the share of attention weights that are dropped.
        only_last: the results of last tokens only.

    Returns:
        ``(tokens, heads * width)``; with `only_last` ``(n, heads * width)``.
    """
    if (kernels := kernels_for(qkv)) is not None and dropout < 1:
        return attend_packed(kernels, qkv, texts.starts, heads=heads, scale=scale, dropout=dropout, only_last=only_last)
    query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # each (tokens, heads, width)
    if only_last:
        query = query[texts.last]  # (n, heads, width)
    kernel = attention_for_training(query.shape[-1], query.dtype, query.device)
    if kernel is None:
        return _by_length(query, key, value, texts, scale, dropout, only_last)
    starts, longest, window = (texts.queries, 1, FULL) if only_last else (texts.starts, texts.longest, CAUSAL)
    attended = kernel(
        query, key, value, starts, texts.starts, longest, texts.longest,
        scale=scale, window_size=window, dropout=dropout,
    )  # fmt: skip
    return attended.flatten(1)


@cache
def attention_for_training(width: int, dtype: torch.dtype, device: torch.device) -> PackedAttention | None:
    """The fastest kernel that reads packed texts; None on a CPU, and if no kernel takes such heads."""
    if device.type != "cuda":
        return None
    kernels: Sequence[PackedAttention] = (flash_attention, efficient_attention)
    for kernel in kernels[0 if takes_flash(width, dtype, device) else 1 :]:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if is_attention(kernel, width, dtype, device):
                return kernel
    logger.warning(
        "attention is computed a length at a time, which is slow: no kernel for %s heads of %d", dtype, width
    )
    return None


def flash_attention(
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
    """As `polyhead.engine.cuda.attention.padded_attention`, by flash attention and with dropout.

    ``varlen_attn`` is the same kernel without dropout.
    """
    attended = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, dropout, window_size == CAUSAL, False, scale=scale
    )[0]
    return cast(torch.Tensor, attended)


def _by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, texts: PackedBatch, scale: float, dropout: float,
    only_last: bool,
) -> torch.Tensor:  # fmt: skip
    """As `attend`, on any device: one call for each run of texts of one length, so that nothing is padded."""
    rows = [count * length for count, length in texts.runs]
    queries = query.split([count for count, _ in texts.runs] if only_last else rows)
    parts = []
    for (count, _), *of_run in zip(texts.runs, queries, key.split(rows), value.split(rows), strict=True):
        # Each (texts, heads, length, width); queries of last tokens have length 1.
        one_query, one_key, one_value = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in of_run)
        context = F.scaled_dot_product_attention(
            one_query, one_key, one_value, is_causal=not only_last, dropout_p=dropout, scale=scale
        )
        parts.append(context.transpose(1, 2).flatten(2).flatten(0, 1))  # (queries of the run, heads * width)
    return torch.cat(parts)
