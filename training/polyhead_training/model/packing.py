"""Padding-free training: a batch is the real tokens of all its texts in one row, and the body runs only on them.

Rows are sorted by length, longest first. Linear layers see ``(tokens, n_embd)``. Attention reads one text at a time
(`attention`), so nothing is padded. In the final block, keys and values are computed for all tokens and the rest
only for each text's last token, because nothing else is read. Gradients equal the padded model's.
Model: Radford et al. 2019. The called modules are those of transformers' ``GPT2Model``, with any adapters on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Model
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from polyhead.windows import Windows
from polyhead_training.model.attention import PackedBatch, attend
from polyhead_training.model.cpu import GELU, Conv1D, Dropout


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
    texts = PackedBatch(lengths, len(input_ids), body.wpe.num_embeddings)
    last = texts.last
    hidden = body.drop(body.wte(input_ids) + body.wpe(texts.positions))  # (tokens, n_embd)
    states: list[torch.Tensor] = [hidden[last]] if layers > len(body.h) else []
    for place, block in enumerate(cast(Iterable[GPT2Block], body.h), start=1):
        final = place == len(body.h)
        if body.training and block.gradient_checkpointing:
            hidden = checkpoint(_block, block, hidden, texts, final, use_reentrant=False)
        else:
            hidden = _block(block, hidden, texts, final)
        if place > len(body.h) - layers:
            states.append(hidden if final else hidden[last])  # (n, n_embd)
    states[-1] = body.ln_f(states[-1])
    return torch.stack(states[::-1])


def fuse_steps(body: GPT2Model) -> None:
    """Replaces transformers' linear layers, ``gelu_new`` and dropouts by the same functions that are faster."""
    body.drop = Dropout(body.drop.p).train(body.training)
    for block in cast(Iterable[Any], body.h):
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = GELU()
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.__class__ = Conv1D  # the same object, because transformers has marked it as initialized
        block.attn.resid_dropout = Dropout(block.attn.resid_dropout.p).train(body.training)
        block.mlp.dropout = Dropout(block.mlp.dropout.p).train(body.training)


def _block(block: GPT2Block, hidden: torch.Tensor, texts: PackedBatch, only_last: bool) -> torch.Tensor:
    """A block's output ``(tokens, n_embd)`` or, if `only_last`, only at last tokens: ``(n, n_embd)``."""
    attention = block.attn
    qkv = attention.c_attn(block.ln_1(hidden))  # (tokens, 3 * n_embd)
    if only_last:
        hidden = hidden[texts.last]
    attended = attend(
        qkv, texts, heads=attention.num_heads, scale=attention.scaling, only_last=only_last,
        dropout=attention.attn_dropout.p if attention.training else 0.0,
    )  # fmt: skip
    hidden = hidden + attention.resid_dropout(attention.c_proj(attended))
    output: torch.Tensor = hidden + block.mlp(block.ln_2(hidden))
    return output
