"""Causal attention over packed texts on the CPU: by one of the engine's own kernels, or by PyTorch.

For PyTorch, texts of similar length form a group, padded on the right. Under a causal mask a real token never sees a
pad to its right, so no padding mask is needed and no score depends on padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F

from polyhead.body import Body
from polyhead.engine.cpu.kernels import HEAD_WIDTH, KERNELS
from polyhead.engine.cpu.kernels.amx_attention import AMX_ATTENTION
from polyhead.engine.micro_batch import similar_lengths

GROUP_SLACK = 1.1  # a group's longest text is at most this many times its shortest


def has_attention_kernel(body: Body) -> bool:
    """Whether the engine's own kernel computes attention: kernels were compiled, and heads have the width they take."""
    return KERNELS is not None and body.n_embd == body.n_head * HEAD_WIDTH


def has_amx_attention(body: Body) -> bool:
    """Whether AMX computes attention of bfloat16 queries, keys and values."""
    return AMX_ATTENTION is not None and has_attention_kernel(body)


class PackedTexts:
    """Which rows of the packed matrix belong to which text.

    Args:
        lengths: tokens per text, ascending.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.positions = torch.cat([torch.arange(length) for length in lengths])  # (tokens,) within its text
        self.starts = torch.tensor([0, *lengths]).cumsum(0)  # (texts + 1,) row of each text's first token
        self.last = self.starts[1:] - 1  # (texts,) row of each text's last token
        self._lengths = lengths

    @cached_property
    def groups(self) -> list[_Group]:
        """The texts, grouped by similar length."""
        runs = similar_lengths(self._lengths, GROUP_SLACK)
        return [_Group(sum(self._lengths[:first]), self._lengths[first:end]) for first, end in runs]

    def attend(self, qkv: torch.Tensor, heads: int, scale: float, out: torch.Tensor) -> torch.Tensor:
        """Each token attends to its text up to itself.

        Args:
            qkv: ``(tokens, 3 * n_embd)``.
            out: ``(tokens, n_embd)`` of the same type, or float32 if `has_amx_attention`; receives the result, and is
                returned.
        """
        if AMX_ATTENTION and qkv.dtype == torch.bfloat16 and out.shape[1] == heads * HEAD_WIDTH:
            return AMX_ATTENTION.attend(qkv, self.starts, heads, scale, out)
        if KERNELS and out.shape[1] == heads * HEAD_WIDTH:
            return KERNELS.attend(qkv, self.starts, heads, scale, out)
        for group in self.groups:
            query, key, value = group.pad(qkv, 3, heads)  # each (texts, heads, longest, width)
            context = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
            group.unpad(context, out)
        return out

    def attend_last(self, query: torch.Tensor, kv: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
        """Each text's last token attends to its whole text.

        Args:
            query: ``(texts, n_embd)``.
            kv: ``(tokens, 2 * n_embd)``.

        Returns:
            ``(texts, n_embd)``.
        """
        if KERNELS and query.shape[1] == heads * HEAD_WIDTH:
            return KERNELS.attend_last(query, kv, self.starts, heads, scale)
        contexts = []
        text = 0
        for group in self.groups:
            key, value = group.pad(kv, 2, heads)
            texts, _, _, width = key.shape
            rows = query[text : text + texts].view(texts, heads, 1, width)
            mask = group.real[:, None, None]  # (texts, 1, 1, longest)
            context = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
            contexts.append(context.flatten(1))
            text += texts
        return torch.cat(contexts)


class _Group:
    """Consecutive texts of similar length; converts their packed rows to a padded tensor and back."""

    def __init__(self, start: int, lengths: Sequence[int]) -> None:
        sizes = torch.tensor(lengths)
        offsets = start + sizes.cumsum(0) - sizes  # (texts,) row where each text starts
        places = torch.arange(max(lengths))  # (longest,)
        self.rows = slice(start, start + sum(lengths))
        self.shape = (len(lengths), max(lengths))
        self.real = places < sizes[:, None]  # (texts, longest)
        # A pad repeats its text's last token: finite values that no real token sees.
        self.index = offsets[:, None] + torch.minimum(places, sizes[:, None] - 1)  # (texts, longest)
        self.is_dense = bool(self.real.all())

    def pad(self, packed: torch.Tensor, parts: int, heads: int) -> torch.Tensor:
        """``(tokens, parts * n_embd)`` to ``(parts, texts, heads, longest, width)``."""
        rows = packed[self.rows] if self.is_dense else packed[self.index]
        return rows.view(*self.shape, parts, heads, -1).permute(2, 0, 3, 1, 4)

    def unpad(self, context: torch.Tensor, packed: torch.Tensor) -> None:
        """Writes ``(texts, heads, longest, width)`` to this group's rows of ``(tokens, n_embd)``."""
        rows = context.transpose(1, 2).flatten(2)  # (texts, longest, n_embd)
        packed[self.rows] = rows.flatten(0, 1) if self.is_dense else rows[self.real]
