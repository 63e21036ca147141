"""The CPU engine's own kernels (kernels.c): attention, layer norm, GELU and the passes around 8-bit products.

``hatch_build.py`` compiles them at installation, for AVX-512 with bf16, AVX-512 and AVX2, with those of `products` and
`training` in the same library. They are called by ctypes, which lets other threads run during a call. If no library
fits, `KERNELS` is None, and engine and training use PyTorch's operations, which are slower.
See docs/decisions/0016-kernels.md.
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

HEAD_WIDTH = 64  # the only channels per head that `Kernels.attend` takes; every size of GPT-2 has them
GELU_FLOOR = 0.1701  # the same as in kernels.c
PART_VALUES = 2**16  # fewer values take about 20 microseconds: too little work for another thread

_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_SIGNATURES = {
    "gelu_float32": (_POINTER, _COUNT, _COUNT),
    "gelu_bfloat16": (_POINTER, _COUNT, _COUNT),
    "layer_norm": (_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _INT),
    "quantise": (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _INT),
    "gelu_quantise": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _INT),
    "rescale": (_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _INT),
    "attention": (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _FLOAT, _INT),
    "attention_last": (_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _INT),
}


class Kernels:
    """Typed and checked calls; large work is divided among as many threads as torch has.

    Tensors must be dense and on the CPU, because none is copied: `check_tensor` refuses what kernels.c would misread.
    """

    def __init__(self, path: Path) -> None:
        """Loads a library; see `open_library`."""
        library = open_library(path)
        self._calls = {name: getattr(library, f"polyhead_{name}") for name in _SIGNATURES}
        for name, call in self._calls.items():
            call.argtypes = _SIGNATURES[name]
            call.restype = _INT if name.startswith(("attention", "layer_norm")) else None

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The tanh form of GELU in place, for float32 or bfloat16 ``(rows, columns)``."""
        rows, columns = x.shape
        check_tensor(x, _float_or_bf16(x), rows, columns)
        call = self._calls["gelu_bfloat16" if x.dtype == torch.bfloat16 else "gelu_float32"]
        in_parts(rows, columns, lambda first, end: call(_at(x, first), end - first, columns))
        return x

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Layer norm of float32 or bfloat16 ``(rows, columns)`` to the same type; weight and bias are float32."""
        rows, columns = x.shape
        check_tensor(x, _float_or_bf16(x), rows, columns)
        for tensor in (weight, bias):
            check_tensor(tensor, torch.float32, columns)
        out, is_bf16 = torch.empty_like(x), x.dtype == torch.bfloat16
        call = self._calls["layer_norm"]

        def run(first: int, end: int) -> None:
            places = _at(x, first), _at(weight, 0), _at(bias, 0), _at(out, first)
            if call(*places, end - first, columns, epsilon, is_bf16):
                raise MemoryError("no memory for a layer norm's row")

        in_parts(rows, columns, run)
        return out

    def quantise(self, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantises float32 rows ``(rows, columns)`` to uint8 of the same shape; also returns the scales ``(rows,)``.

        A value is about ``(q - (steps + 1)) * scale``.
        """
        rows, columns = x.shape
        check_tensor(x, torch.float32, rows, columns)
        q, scales = torch.empty_like(x, dtype=torch.uint8), x.new_empty(rows)
        call = self._calls["quantise"]
        in_parts(
            rows,
            columns,
            lambda first, end: call(_at(x, first), _at(q, first), _at(scales, first), end - first, columns, steps),
        )
        return q, scales

    def gelu_quantise(
        self, product: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, levels: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tanh form of GELU of ``product * scales[:, None] + bias``, quantised; overwrites `product`.

        Returns:
            uint8 ``(rows, columns)`` of at most `levels`, and scales ``(rows,)``: a value is about
            ``q * scale - GELU_FLOOR``.
        """
        rows, columns = product.shape
        for tensor, shape in ((product, (rows, columns)), (scales, (rows,)), (bias, (columns,))):
            check_tensor(tensor, torch.float32, *shape)
        q, new = torch.empty_like(product, dtype=torch.uint8), torch.empty_like(scales)
        call = self._calls["gelu_quantise"]
        in_parts(
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
        """Stores ``product * scales[:, None] + bias`` in `out`, or adds it to `out`."""
        rows, columns = product.shape
        for tensor, shape in (
            (product, (rows, columns)),
            (scales, (rows,)),
            (bias, (columns,)),
            (out, (rows, columns)),
        ):
            check_tensor(tensor, torch.float32, *shape)
        call = self._calls["rescale"]
        in_parts(
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
        """Causal attention of packed texts; each text attends only to itself.

        Args:
            qkv: ``(tokens, 3 * heads * HEAD_WIDTH)``, float32 or bfloat16.
            starts: int64 ``(texts + 1,)``, the row where each text starts, and the row where the last one ends.
            out: ``(tokens, heads * HEAD_WIDTH)`` of the same type; receives the result, and is returned.
        """
        for tensor, times in ((qkv, 3), (out, 1)):
            check_tensor(tensor, _float_or_bf16(out), len(qkv), times * heads * HEAD_WIDTH)
        check_starts(starts, len(qkv))
        call, is_bf16 = self._calls["attention"], qkv.dtype == torch.bfloat16
        lengths = starts.diff()

        def run(first: int, end: int) -> None:
            if call(_at(qkv, 0), _at(out, 0), _at(starts, 0), len(lengths), heads, first, end, scale, is_bf16):
                raise MemoryError("no memory for attention's keys and values")

        in_parts(heads, int((lengths * lengths).sum()) * 4, run)  # a score takes as long as several values
        return out

    def attend_last(
        self, query: torch.Tensor, kv: torch.Tensor, starts: torch.Tensor, heads: int, scale: float
    ) -> torch.Tensor:
        """Attention of each text's last token to the whole text.

        Args:
            query: ``(texts, heads * HEAD_WIDTH)``, float32 or bfloat16.
            kv: ``(tokens, 2 * heads * HEAD_WIDTH)`` of the same type.
            starts: as for `attend`.

        Returns:
            A tensor of `query`'s shape and type.
        """
        check_tensor(query, _float_or_bf16(query), len(starts) - 1, heads * HEAD_WIDTH)
        check_tensor(kv, query.dtype, len(kv), 2 * heads * HEAD_WIDTH)
        check_starts(starts, len(kv))
        out, is_bf16 = torch.empty_like(query), query.dtype == torch.bfloat16
        call = self._calls["attention_last"]
        if call(_at(query, 0), _at(kv, 0), _at(out, 0), _at(starts, 0), len(starts) - 1, heads, scale, is_bf16):
            raise MemoryError("no memory for attention's scores")
        return out


def check_tensor(tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Raises TypeError if a tensor is not dense, or not of this type and shape, or not on the CPU."""
    is_right = (
        tensor.is_contiguous() and tensor.dtype == dtype and tensor.shape == shape and tensor.device.type == "cpu"
    )
    if not is_right:
        raise TypeError(
            f"kernels take dense {dtype} of {shape}, got {tensor.dtype} of {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}, on {tensor.device}"
        )


def check_starts(starts: torch.Tensor, rows: int) -> None:
    """Each text must have a token; the matrix may have more rows after the last text."""
    check_tensor(starts, torch.int64, len(starts))
    places = starts.tolist()
    if places[0] != 0 or places[-1] > rows or any(end <= first for first, end in pairwise(places)):
        raise TypeError(f"texts must start at ascending rows from 0 to at most {rows}, got {places}")


def _float_or_bf16(tensor: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32


def _at(tensor: torch.Tensor, row: int) -> int:
    return tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


def in_parts(rows: int, values_per_row: int, call: Callable[[int, int], None]) -> None:
    """Calls with first and end row: once, or in parallel for parts of the rows."""
    parts = min(torch.get_num_threads(), rows, rows * values_per_row // PART_VALUES)
    if parts <= 1:
        call(0, rows)
        return
    ends = [rows * part // parts for part in range(parts + 1)]
    list(_pool().map(call, ends[:-1], ends[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "polyhead-kernels")


def open_library(path: Path) -> ctypes.CDLL:
    """Loads a library; raises OSError if it cannot be loaded, or was not compiled from the sources beside it."""
    library = ctypes.CDLL(str(path))
    library.polyhead_source.restype = ctypes.c_char_p
    sources = b"".join(source.read_bytes() for source in sorted(path.parent.glob("*.[ch]")))  # as in hatch_build.py
    if library.polyhead_source() != hashlib.sha256(sources).hexdigest().encode():
        raise OSError(f"{path}: compiled from other sources; install polyhead again")
    return library


def load_kernels() -> Kernels | None:
    """The kernels for this CPU; None, with a line in the log, if their library cannot be loaded."""
    try:
        return Kernels(LIBRARY)
    except OSError as error:
        logger.warning("the CPU engine runs without its kernels, which is slower: %s", error)
        return None


def library_for_this_cpu() -> Path:
    """The library of the best instructions that torch uses here and the compiler knew."""
    capability = torch.backends.cpu.get_cpu_capability()
    has_short_values = torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()
    best = f"{capability}BF16" if capability == "AVX512" and has_short_values else capability
    path = Path(__file__).with_name(f"kernels_{best}.so")
    return path if path.exists() else path.with_name(f"kernels_{capability}.so")


LIBRARY = library_for_this_cpu()
KERNELS = load_kernels()
