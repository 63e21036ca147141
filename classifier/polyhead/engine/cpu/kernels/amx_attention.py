"""Causal attention on AMX's tiles (amx_attention.c), called by ctypes: queries, keys and values in bfloat16.

It runs where the products of `amx` run. If `AMXAttention.check` finds a wrong result at load, `AMX_ATTENTION` is None
and `Kernels` computes attention, also in bfloat16. A text's bits depend on the text alone. Attention of last tokens is
not here, because a single query per text does not fill a tile.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F

from polyhead.engine.cpu.kernels import HEAD_WIDTH, check_starts, check_tensor, in_parts
from polyhead.engine.cpu.kernels.amx import assert_near, load_checked, open_amx_library

_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class AMXAttention:
    """A typed and checked call; heads are divided among as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Loads a library; raises OSError if it cannot be loaded or used here, or was compiled from other sources."""
        self._attention = open_amx_library(path).polyhead_amx_attention
        self._attention.argtypes = (
            _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _FLOAT, _INT
        )  # fmt: skip

    def attend(
        self, qkv: torch.Tensor, starts: torch.Tensor, heads: int, scale: float, out: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention of packed texts; each text attends only to itself.

        Args:
            qkv: bfloat16 ``(tokens, 3 * heads * HEAD_WIDTH)``.
            starts: int64 ``(texts + 1,)``, the row where each text starts, and the row where the last one ends.
            out: bfloat16 or float32 ``(tokens, heads * HEAD_WIDTH)``; receives the result, and is returned.
        """
        to_float = out.dtype == torch.float32
        check_tensor(qkv, torch.bfloat16, len(out), 3 * heads * HEAD_WIDTH)
        check_tensor(out, torch.float32 if to_float else torch.bfloat16, len(out), heads * HEAD_WIDTH)
        check_starts(starts, len(out))
        places = qkv.data_ptr(), out.data_ptr(), starts.data_ptr(), len(starts) - 1, heads
        lengths = starts.diff()

        def run(first: int, end: int) -> None:
            if self._attention(*places, first, end, scale, to_float):
                raise MemoryError("no memory for attention's keys and values")

        scores = int((lengths * (lengths + HEAD_WIDTH)).sum())
        in_parts(heads, scores, run)  # a score takes a fourth of the time that it takes `Kernels`
        return out

    def check(self) -> None:
        """Compares small texts with PyTorch's attention, in milliseconds; raises OSError if a result is wrong."""
        random = torch.Generator().manual_seed(0)
        heads, lengths = 2, (1, 17, 32, 75)
        channels = heads * HEAD_WIDTH
        qkv = torch.randn(sum(lengths), 3 * channels, generator=random)
        # The last text's scores grow by 100 from its first key to its last, so that a sum passes the kernel's limit.
        qkv[-lengths[-1] :, :channels] = 1.0
        qkv[-lengths[-1] :, channels : 2 * channels] += torch.linspace(0, 100 / 8, lengths[-1])[:, None]
        qkv = qkv.bfloat16()
        wanted = []
        for text in qkv.float().split(lengths):
            query, key, value = text.view(len(text), 3, heads, HEAD_WIDTH).permute(1, 2, 0, 3)[:, None]
            context = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.125)
            wanted.append(context[0].transpose(0, 1).flatten(1))
        starts = torch.tensor([0, *lengths]).cumsum(0)
        for dtype in (torch.bfloat16, torch.float32):
            found = torch.full((len(qkv), channels), torch.nan, dtype=dtype)
            assert_near("attention", self.attend(qkv, starts, heads, 0.125, found), torch.cat(wanted))


AMX_ATTENTION = load_checked(AMXAttention, "attention", "kernels.c computes attention")
