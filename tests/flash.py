"""Attention over packed texts on the CPU, as strict as flash attention."""

from __future__ import annotations

import torch

from polyhead.engine.cuda.attention import CAUSAL


def flash_stand_in(
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
    """Attention one text and head at a time, as strict as flash attention; rows that belong to no text are NaN."""
    assert query.shape[1:] == key.shape[1:] == value.shape[1:]
    assert key.shape[0] == value.shape[0]
    assert query.dtype == key.dtype == value.dtype
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert query.shape[-1] % 8 == 0
    assert query.shape[-1] <= 256
    for starts, longest, rows in ((cu_seq_q, max_q, len(query)), (cu_seq_k, max_k, len(key))):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        assert starts[0] == 0
        assert starts[-1] <= rows
        assert starts.diff().min() >= 0
        assert starts.diff().max() <= longest
    assert cu_seq_q.shape == cu_seq_k.shape
    attended = torch.full(query.shape, torch.nan, dtype=query.dtype)
    bounds_q, bounds_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    for text in range(len(bounds_q) - 1):
        rows_q = slice(bounds_q[text], bounds_q[text + 1])
        rows_k = slice(bounds_k[text], bounds_k[text + 1])
        for head in range(query.shape[1]):
            scores = query[rows_q, head].float() @ key[rows_k, head].float().T * scale
            if window_size == CAUSAL:
                scores += torch.full_like(scores, -torch.inf).triu(1 + scores.shape[1] - scores.shape[0])
            weights = torch.dropout(scores.softmax(-1), dropout, True)
            attended[rows_q, head] = (weights @ value[rows_k, head].float()).to(query.dtype)
    return attended
