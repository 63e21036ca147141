"""Training's kernels on a CPU (training.c): attention of packed texts, GELU and dropout, forwards and backwards.

They are in the engine's library. If none fits, `training_kernels` gives None and training uses PyTorch's operations.
See docs/decisions/0005-packed-training.md.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from polyhead.engine.cpu.kernels import KERNELS, LIBRARY, check_tensor, in_parts, open_library

TYPES = (torch.float32, torch.bfloat16)
BLOCK = 64  # values: a multiple of each target's vectors

_POINTER, _COUNT, _INT, _FLOAT, _SEED = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_uint32


class _Attention(ctypes.Structure):
    """``struct attention`` of training.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("qkv", "out", "out_grad", "qkv_grad", "starts")),
        *((name, _COUNT) for name in ("texts", "heads", "width")),
        *((name, _INT) for name in ("only_last", "is_bf16")),
        *((name, _FLOAT) for name in ("scale", "dropout")),
        ("seed", _SEED),
    )


_SIGNATURES = {
    "dropout": (_POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _SEED, _INT),
    "gelu_forward": (_POINTER, _POINTER, _COUNT, _INT),
    "gelu_backward": (_POINTER, _POINTER, _POINTER, _COUNT, _INT),
    "training_attention": (ctypes.POINTER(_Attention), _COUNT, _COUNT, _COUNT, _INT),
}


class AttentionOptions(NamedTuple):
    """How packed texts attend.

    Attributes:
        heads: how many; they may have any width.
        scale: factor of the scores before the softmax.
        dropout: the share of attention weights that are dropped.
        seed: decides which ones, from 0 to 2**32 - 1.
        only_last: the results of last tokens only.
    """

    heads: int
    scale: float
    dropout: float
    seed: int
    only_last: bool


class TrainingKernels:
    """Typed and checked calls; large work is divided among as many threads as torch has, with the same bits.

    Tensors must be dense, on the CPU, and float32 or bfloat16.
    """

    def __init__(self, path: Path) -> None:
        """Loads a library; see `open_library`."""
        library = open_library(path)
        self._calls = {name: getattr(library, f"polyhead_{name}") for name in _SIGNATURES}
        for name, call in self._calls.items():
            call.argtypes = _SIGNATURES[name]
            call.restype = _INT if name == "training_attention" else None

    def attend(self, qkv: torch.Tensor, starts: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
        """Causal attention of packed texts.

        Args:
            qkv: ``(tokens, 3 * heads * width)``.
            starts: int32 ``(texts + 1,)``, the row where each text starts, and the row where the last one ends.

        Returns:
            ``(tokens, heads * width)``; with `only_last` ``(texts, heads * width)``.
        """
        out = qkv.new_empty(len(starts) - 1 if options.only_last else len(qkv), qkv.shape[1] // 3)
        call = _attention(qkv, starts, options)
        call.out = out.data_ptr()
        self._run(call, starts, is_backward=False)
        return out

    def attend_backward(
        self, out_grad: torch.Tensor, qkv: torch.Tensor, starts: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """The gradient of `qkv`, given that of `attend`'s result and the arguments of `attend`."""
        rows = len(starts) - 1 if options.only_last else len(qkv)
        check_tensor(out_grad, qkv.dtype, rows, qkv.shape[1] // 3)
        qkv_grad = torch.zeros_like(qkv) if options.only_last else torch.empty_like(qkv)
        call = _attention(qkv, starts, options)
        call.out_grad, call.qkv_grad = out_grad.data_ptr(), qkv_grad.data_ptr()
        self._run(call, starts, is_backward=True)
        return qkv_grad

    def _run(self, call: _Attention, starts: torch.Tensor, *, is_backward: bool) -> None:
        threads = torch.get_num_threads()
        lengths = starts.diff().double()
        scores = int((lengths if call.only_last else lengths * lengths).sum()) * call.heads

        def run(first: int, end: int) -> None:
            if self._calls["training_attention"](ctypes.byref(call), first, end, threads, is_backward):
                raise MemoryError("no memory for attention's keys and values")

        in_parts(threads, scores * 4 // threads, run)  # a score takes as long as several values

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The tanh form of GELU of a tensor of any shape."""
        check_tensor(x, _type(x), *x.shape)
        y = torch.empty_like(x)
        self._by_value("gelu_forward", x.numel(), [x, y], x.dtype)
        return y

    def gelu_backward(self, y_grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The gradient of `x`, given that of `gelu`'s result."""
        for tensor in (x, y_grad):
            check_tensor(tensor, _type(x), *x.shape)
        x_grad = torch.empty_like(x)
        self._by_value("gelu_backward", x.numel(), [x, y_grad, x_grad], x.dtype)
        return x_grad

    def dropout(self, x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        """`x` with `share` of its values set to zero and the others divided by ``1 - share``.

        Which ones depends on `seed` alone, so the gradient is the same call on the result's gradient.
        """
        check_tensor(x, _type(x), *x.shape)
        y = torch.empty_like(x)
        call, size = self._calls["dropout"], x.element_size()

        def run(first: int, end: int) -> None:
            at, to = (tensor.data_ptr() + first * size for tensor in (x, y))
            call(at, to, first, end - first, share, seed, x.dtype == torch.bfloat16)

        in_parts(x.numel(), 1, run)
        return y

    def _by_value(self, name: str, values: int, tensors: list[torch.Tensor], dtype: torch.dtype) -> None:
        call, size = self._calls[name], tensors[0].element_size()

        def run(first: int, end: int) -> None:
            first, end = first * BLOCK, min(end * BLOCK, values)
            call(*(tensor.data_ptr() + first * size for tensor in tensors), end - first, dtype == torch.bfloat16)

        # Whole vectors, because the values after the last whole one are rounded differently.
        in_parts(-(-values // BLOCK), BLOCK, run)


def _attention(qkv: torch.Tensor, starts: torch.Tensor, options: AttentionOptions) -> _Attention:
    width = qkv.shape[1] // (3 * options.heads)
    check_tensor(qkv, _type(qkv), len(qkv), 3 * options.heads * width)
    check_tensor(starts, torch.int32, len(starts))
    if starts[0] != 0 or starts[-1] != len(qkv) or bool((starts.diff() < 1).any()):
        raise TypeError(f"texts must fill the rows from 0 to {len(qkv)}, got {starts.tolist()}")
    if not 0 <= options.dropout < 1:
        raise ValueError(f"dropout must lie in 0 to 1, without 1, got {options.dropout}")
    return _Attention(
        qkv=qkv.data_ptr(), starts=starts.data_ptr(), texts=len(starts) - 1, width=width,
        is_bf16=qkv.dtype == torch.bfloat16, **options._asdict(),
    )  # fmt: skip


def _type(tensor: torch.Tensor) -> torch.dtype:
    """The tensor's type if the kernels take it, else one that it does not have."""
    return tensor.dtype if tensor.dtype in TYPES else torch.float32


@cache
def training_kernels() -> TrainingKernels | None:
    """The kernels for this CPU; None if their library cannot be loaded."""
    return None if KERNELS is None else TrainingKernels(LIBRARY)
