"""The compiled kernels, called through ctypes, which lets other threads run meanwhile.

They were compiled at installation, for CPUs with AVX-512 and with AVX2. Without a library `KERNELS` is None and the
engine computes the same with PyTorch's operations, more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

HEAD_WIDTH = 64  # channels of a head that `Kernels.attend` can do, as in every size of GPT-2
GELU_FLOOR = 0.1701  # kernels.c's
PART_VALUES = 2**16  # a thread of its own is worth that many values, some 20 microseconds

_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_SIGNATURES = {
    "gelu_float32": (_POINTER, _COUNT, _COUNT),
    "gelu_bfloat16": (_POINTER, _COUNT, _COUNT),
    "quantise": (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _INT),
    "gelu_quantise": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _INT),
    "rescale": (_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _INT),
    "attention": (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _FLOAT, _INT),
    "attention_last": (_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _INT),
}


class Kernels:
    """Typed, checked calls; the work is shared out among torch's number of threads where there is enough of it.

    All tensors are dense, on the CPU, and none is copied: `_check` refuses what kernels.c would misread.
    """

    def __init__(self, path: Path) -> None:
        """Loads a library; raises OSError if it cannot be, or was compiled from another kernels.c."""
        library = ctypes.CDLL(str(path))
        source = library.polyhead_source
        source.restype = ctypes.c_char_p
        if source() != hashlib.sha256(path.with_name("kernels.c").read_bytes()).hexdigest().encode():
            raise OSError(f"{path}: compiled from another kernels.c; install polyhead again")
        self._calls = {name: getattr(library, f"polyhead_{name}") for name in _SIGNATURES}
        for name, call in self._calls.items():
            call.argtypes = _SIGNATURES[name]
            call.restype = _INT if name.startswith("attention") else None

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The tanh form of GELU in place, of float32 or bfloat16 ``(rows, columns)``."""
        rows, columns = x.shape
        _check(x, _float_or_bf16(x), rows, columns)
        call = self._calls["gelu_bfloat16" if x.dtype == torch.bfloat16 else "gelu_float32"]
        _in_parts(rows, columns, lambda first, end: call(_at(x, first), end - first, columns))
        return x

    def quantise(self, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows to 8 bits: uint8 like `x` ``(rows, columns)`` float32, and the scales ``(rows,)``.

        A value is about ``(q - (steps + 1)) * scale``.
        """
        rows, columns = x.shape
        _check(x, torch.float32, rows, columns)
        q, scales = torch.empty_like(x, dtype=torch.uint8), x.new_empty(rows)
        call = self._calls["quantise"]
        _in_parts(
            rows,
            columns,
            lambda first, end: call(_at(x, first), _at(q, first), _at(scales, first), end - first, columns, steps),
        )
        return q, scales

    def gelu_quantise(
        self, product: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, levels: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tanh form of GELU of ``product * scales[:, None] + bias``, to 8 bits; overwrites `product`.

        Returns:
            uint8 like `product` ``(rows, columns)``, at most `levels`, and scales ``(rows,)``: a value is about
            ``q * scale - GELU_FLOOR``.
        """
        rows, columns = product.shape
        for tensor, shape in ((product, (rows, columns)), (scales, (rows,)), (bias, (columns,))):
            _check(tensor, torch.float32, *shape)
        q, new = torch.empty_like(product, dtype=torch.uint8), torch.empty_like(scales)
        call = self._calls["gelu_quantise"]
        _in_parts(
            rows,
            columns,
            lambda first, end: call(
                _at(product, first), _at(scales, first), _at(bias, 0), _at(q, first), _at(new, first),
                end - first, columns, levels,
            ),
        )  # fmt: skip
        return q, new

    def rescale(
        self, product: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, adds: bool
    ) -> torch.Tensor:
        """``product * scales[:, None] + bias`` into `out`, or added to it."""
        rows, columns = product.shape
        for tensor, shape in (
            (product, (rows, columns)),
            (scales, (rows,)),
            (bias, (columns,)),
            (out, (rows, columns)),
        ):
            _check(tensor, torch.float32, *shape)
        call = self._calls["rescale"]
        _in_parts(
            rows,
            columns,
            lambda first, end: call(
                _at(product, first), _at(scales, first), _at(bias, 0), _at(out, first), end - first, columns, adds
            ),
        )
        return out

    def attend(
        self, qkv: torch.Tensor, starts: torch.Tensor, heads: int, scale: float, out: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention of packed texts, each to itself.

        Args:
            qkv: ``(tokens, 3 * heads * HEAD_WIDTH)``, float32 or bfloat16.
            starts: int64 ``(texts + 1,)``, the row where each text starts, and `tokens`.
            out: ``(tokens, heads * HEAD_WIDTH)`` of the same type, written to.
        """
        for tensor, times in ((qkv, 3), (out, 1)):
            _check(tensor, _float_or_bf16(out), len(qkv), times * heads * HEAD_WIDTH)
        _check_starts(starts, len(qkv))
        call, is_bf16 = self._calls["attention"], qkv.dtype == torch.bfloat16
        lengths = starts.diff()

        def run(first: int, end: int) -> None:
            if call(_at(qkv, 0), _at(out, 0), _at(starts, 0), len(lengths), heads, first, end, scale, is_bf16):
                raise MemoryError("no memory for attention's keys and values")

        _in_parts(heads, int((lengths * lengths).sum()) * 4, run)  # a score costs several values' time
        return out

    def attend_last(
        self, query: torch.Tensor, kv: torch.Tensor, starts: torch.Tensor, heads: int, scale: float
    ) -> torch.Tensor:
        """Attention of each text's last token to its whole text.

        Args:
            query: ``(texts, heads * HEAD_WIDTH)``, float32 or bfloat16.
            kv: ``(tokens, 2 * heads * HEAD_WIDTH)`` of the same type.
            starts: as for `attend`.

        Returns:
            Like `query`.
        """
        _check(query, _float_or_bf16(query), len(starts) - 1, heads * HEAD_WIDTH)
        _check(kv, query.dtype, len(kv), 2 * heads * HEAD_WIDTH)
        _check_starts(starts, len(kv))
        out, is_bf16 = torch.empty_like(query), query.dtype == torch.bfloat16
        call = self._calls["attention_last"]
        if call(_at(query, 0), _at(kv, 0), _at(out, 0), _at(starts, 0), len(starts) - 1, heads, scale, is_bf16):
            raise MemoryError("no memory for attention's scores")
        return out


def _check(tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> None:
    is_right = (
        tensor.is_contiguous() and tensor.dtype == dtype and tensor.shape == shape and tensor.device.type == "cpu"
    )
    if not is_right:
        raise TypeError(
            f"kernels take dense {dtype} of {shape}, got {tensor.dtype} of {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}, on {tensor.device}"
        )


def _check_starts(starts: torch.Tensor, rows: int) -> None:
    """Rows of texts that have a token each; there may be rows behind the last text's."""
    _check(starts, torch.int64, len(starts))
    places = starts.tolist()
    if places[0] != 0 or places[-1] > rows or any(end <= first for first, end in pairwise(places)):
        raise TypeError(f"texts must start at ascending rows from 0 to at most {rows}, got {places}")


def _float_or_bf16(tensor: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32


def _at(tensor: torch.Tensor, row: int) -> int:
    return tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


def _in_parts(rows: int, values_a_row: int, call: Callable[[int, int], None]) -> None:
    """Calls with first and end row: once, or in as many threads as torch would use."""
    parts = min(torch.get_num_threads(), rows, rows * values_a_row // PART_VALUES)
    if parts <= 1:
        call(0, rows)
        return
    ends = [rows * part // parts for part in range(parts + 1)]
    list(_pool().map(call, ends[:-1], ends[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "polyhead-kernels")


def load_kernels() -> Kernels | None:
    """The library for this CPU, if it was compiled; else a line in the log says that there is none."""
    path = Path(__file__).with_name(f"kernels_{torch.backends.cpu.get_cpu_capability()}.so")
    try:
        return Kernels(path)
    except OSError as error:
        logger.warning("the CPU engine does without its kernels: %s", error)
        return None


KERNELS = load_kernels()
