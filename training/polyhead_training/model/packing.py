"""Padding-free training: a batch is the real tokens of all its texts in one row, and the body runs only on them.

Rows are sorted by length, longest first. Linear layers see ``(tokens, n_embd)``. Attention runs on texts of the same
length at a time, so nothing is padded. In the final block, keys and values are computed for all tokens and the rest
only for each text's last token, because nothing else is read. Gradients equal the padded model's.
Model: Radford et al. 2019. The called modules are those of transformers' ``GPT2Model``, with any adapters on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Model
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block

from polyhead.windows import Windows

Runs = list[tuple[int, int]]  # (texts, length) of neighbours of one length


def collate(
    rows: Sequence[dict[str, Any]], longest_first: bool = True, windows: Windows | None = None
) -> dict[str, torch.Tensor]:
    """A packed batch of rows with ``input_ids`` and ``labels``.

    Args:
        windows: how longer texts are cut. If a text has several windows, each is packed as a text of its own.

    Returns:
        ``lengths`` int64 (n,), first because its size is the batch's; ``input_ids`` int64 (tokens,); ``labels`` float32
        (n, sum of label widths). If a text has several windows, ``pooling`` float32 (n, windows) is first: the share of
        each window in the logits of each text; and there is a length per window.
    """
    if longest_first:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)
    if windows is not None and any(len(row["input_ids"]) > windows.length for row in rows):
        return _collate_windows(rows, windows)
    return {
        "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
        "input_ids": torch.tensor([token for row in rows for token in row["input_ids"]]),
        "labels": torch.tensor([row["labels"] for row in rows], dtype=torch.float32),
    }


def _collate_windows(rows: Sequence[dict[str, Any]], windows: Windows) -> dict[str, torch.Tensor]:
    parts = [
        (row, share, window)
        for row, ids in enumerate(row["input_ids"] for row in rows)
        for share, window in zip(windows.shares(len(ids)), windows.cut(ids), strict=True)
    ]
    parts.sort(key=lambda part: len(part[2]), reverse=True)
    pooling = torch.zeros(len(rows), len(parts))
    for place, (row, share, _) in enumerate(parts):
        pooling[row, place] = share
    return {
        "pooling": pooling,
        "lengths": torch.tensor([len(window) for _, _, window in parts]),
        "input_ids": torch.tensor([token for _, _, window in parts for token in window]),
        "labels": torch.tensor([row["labels"] for row in rows], dtype=torch.float32),
    }


def last_hidden_states(body: GPT2Model, input_ids: torch.Tensor, lengths: torch.Tensor, layers: int) -> torch.Tensor:
    """The hidden states of each text's last token.

    Args:
        input_ids: ``(tokens,)``, the texts one after the other.
        lengths: ``(n,)``; their sum is the number of tokens. Texts of the same length should be neighbours.
        layers: how many of the topmost states to read.

    Returns:
        ``(layers, n, n_embd)``, topmost first. The topmost one is after ``ln_f``; the others are raw block outputs, and
        one more than there are blocks is the sum of embeddings.
    """
    sizes = lengths.tolist()
    runs = [(len(list(run)), size) for size, run in groupby(sizes)]
    last = lengths.cumsum(0) - 1  # (n,)
    starts = torch.repeat_interleave(last + 1 - lengths, lengths)  # (tokens,)
    positions = torch.arange(len(input_ids), device=input_ids.device) - starts
    hidden = body.drop(body.wte(input_ids) + body.wpe(positions))  # (tokens, n_embd)
    states: list[torch.Tensor] = [hidden[last]] if layers > len(body.h) else []
    for place, block in enumerate(cast(Iterable[GPT2Block], body.h), start=1):
        final = place == len(body.h)
        if body.training and block.gradient_checkpointing:
            hidden = checkpoint(_block, block, hidden, runs, last if final else None, use_reentrant=False)
        else:
            hidden = _block(block, hidden, runs, last if final else None)
        if place > len(body.h) - layers:
            states.append(hidden if final else hidden[last])  # (n, n_embd)
    states[-1] = body.ln_f(states[-1])
    return torch.stack(states[::-1])


def fuse_gelu(body: GPT2Model) -> None:
    """Replaces transformers' ``gelu_new`` by torch's tanh-GELU, the same function in one kernel with less memory."""
    for block in body.h:
        mlp: Any = block.mlp
        if isinstance(mlp.act, NewGELUActivation):
            mlp.act = nn.GELU(approximate="tanh")


def _block(block: GPT2Block, hidden: torch.Tensor, runs: Runs, last: torch.Tensor | None) -> torch.Tensor:
    """A block's output ``(tokens, n_embd)`` or, if `last` is given, only at those tokens: ``(n, n_embd)``."""
    qkv = block.attn.c_attn(block.ln_1(hidden))  # (tokens, 3 * n_embd)
    attended = _attend(block.attn, qkv, runs, only_last=last is not None)
    hidden = hidden if last is None else hidden[last]
    hidden = hidden + block.attn.resid_dropout(block.attn.c_proj(attended))
    output: torch.Tensor = hidden + block.mlp(block.ln_2(hidden))
    return output


def _attend(attention: GPT2Attention, qkv: torch.Tensor, runs: Runs, only_last: bool) -> torch.Tensor:
    dropout = attention.attn_dropout.p if attention.training else 0.0
    parts = []
    for (texts, length), rows in zip(runs, torch.split(qkv, [texts * length for texts, length in runs]), strict=True):
        query, key, value = rows.view(texts, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        if only_last:
            query = query[:, :, -1:]  # (texts, heads, 1, width): the last token sees all others
        context = F.scaled_dot_product_attention(
            query, key, value, is_causal=not only_last, dropout_p=dropout, scale=attention.scaling
        )
        parts.append(context.transpose(1, 2).flatten(2).flatten(0, 1))  # (texts * length or texts, n_embd)
    return torch.cat(parts)
