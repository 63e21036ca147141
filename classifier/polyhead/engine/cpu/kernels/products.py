"""float32 matrix products (products.c), called by ctypes, with bias, GELU and sum fused in.

They are in the library of `kernels`. A row of a result has the same bits whatever the other rows are and however
columns are divided among threads. If no library fits, `PRODUCTS` is None and BLAS computes the products.
See docs/decisions/0016-kernels.md.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from polyhead.engine.cpu.kernels import KERNELS, LIBRARY, in_parts, open_library

Finish = Literal["store", "add", "gelu"]

_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class _Product(ctypes.Structure):
    """``struct product`` of products.c."""

    _fields_ = (
        ("x", _POINTER), ("row", _COUNT), ("step", _COUNT), ("weight", _POINTER), ("bias", _POINTER), ("out", _POINTER),
        ("out_row", _COUNT), ("rows", _COUNT), ("inner", _COUNT), ("columns", _COUNT), ("adds", _INT), ("gelu", _INT),
    )  # fmt: skip


@dataclass(frozen=True)
class Panels:
    """A weight ``(inner, columns)`` in panels of some columns, and a bias or None, padded to whole panels."""

    values: torch.Tensor
    inner: int
    columns: int
    bias: torch.Tensor | None


class Products:
    """Typed and checked calls; columns are divided among as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Loads a library; see `open_library`."""
        library = open_library(path)
        self._width = int(library.polyhead_panel_width())
        self._pack, self._product = library.polyhead_pack, library.polyhead_product
        self._pack.argtypes = (_POINTER, _COUNT, _COUNT, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT)
        self._product.argtypes = (ctypes.POINTER(_Product), _COUNT, _COUNT)
        self._pack.restype, self._product.restype = None, _INT

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Panels:
        """Packs float32 ``(inner, columns)`` with any strides, and ``(columns,)``."""
        _check(weight)
        inner, columns = weight.shape
        panels = -(-columns // self._width)
        values = torch.empty(panels * inner * self._width)
        in_parts(
            panels,
            inner * self._width,
            lambda first, end: self._pack(
                weight.data_ptr(), *weight.stride(), values.data_ptr(), inner, columns, first, end
            ),
        )
        if bias is not None:
            padded = torch.zeros(panels * self._width)
            padded[:columns] = bias
            bias = padded
        return Panels(values, inner, columns, bias)

    def product(
        self, x: torch.Tensor, weight: Panels, finish: Finish = "store", out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x @ weight + bias``, stored in `out`, added to it, or stored after the tanh form of GELU.

        Args:
            x: float32 ``(rows, inner)`` with any strides.
            out: float32 ``(rows, columns)``, dense in rows; None makes one.
        """
        rows = len(x)
        out = x.new_empty(rows, weight.columns) if out is None else out
        _check(x, weight.inner)
        _check(out, weight.columns)
        if len(out) != rows or out.stride(1) != 1:
            raise TypeError(f"products fill {rows} dense rows, got {tuple(out.shape)}, strides {out.stride()}")
        call = _Product(
            x.data_ptr(), *x.stride(), weight.values.data_ptr(),
            None if weight.bias is None else weight.bias.data_ptr(),
            out.data_ptr(), out.stride(0), rows, weight.inner, weight.columns, finish == "add", finish == "gelu",
        )  # fmt: skip

        # A panel's time is that of its products, or of reading it from memory if there are few rows.
        def run(first: int, end: int) -> None:
            if self._product(call, first, end):
                raise MemoryError("no memory for a product's rows")

        in_parts(-(-weight.columns // self._width), weight.inner * (16 + rows), run)
        return out


def _check(matrix: torch.Tensor, columns: int | None = None) -> None:
    is_right = matrix.dtype == torch.float32 and matrix.ndim == 2 and matrix.device.type == "cpu"
    if not is_right or columns not in (None, matrix.shape[1]):
        raise TypeError(
            f"products take float32 matrices of {columns or 'any'} columns on the CPU, got {matrix.dtype} of "
            f"{tuple(matrix.shape)} on {matrix.device}"
        )


PRODUCTS = Products(LIBRARY) if KERNELS else None
