"""float32 and bfloat16 matrix products (products.c), called by ctypes, with bias, GELU and sum fused in.

They are in the library of `kernels`. A row of a result has the same bits whatever the other rows are and however
columns are divided among threads. If no library fits, `PRODUCTS` is None and BLAS and oneDNN compute the products.
bfloat16 needs a processor with AVX-512 bf16. See docs/decisions/0016-kernels.md.
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
    """A weight ``(inner, columns)`` in panels of some columns, and a float32 bias or None, padded to whole panels.

    In bfloat16 two neighbours of a column stand in each float32 of `values`.
    """

    values: torch.Tensor
    dtype: torch.dtype
    inner: int
    columns: int
    bias: torch.Tensor | None


class Products:
    """Typed and checked calls; columns are divided among as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Loads a library; see `open_library`."""
        library = open_library(path)
        self._width = int(library.polyhead_panel_width())
        self.has_bf16 = hasattr(library, "polyhead_product_bf16")
        names = {torch.float32: ""} | ({torch.bfloat16: "_bf16"} if self.has_bf16 else {})
        self._pack = {dtype: getattr(library, f"polyhead_pack{name}") for dtype, name in names.items()}
        self._product = {dtype: getattr(library, f"polyhead_product{name}") for dtype, name in names.items()}
        for call in self._pack.values():
            call.argtypes = (_POINTER, _COUNT, _COUNT, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT)
            call.restype = None
        for call in self._product.values():
            call.argtypes, call.restype = (ctypes.POINTER(_Product), _COUNT, _COUNT), _INT

    def pack(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Panels:
        """Packs float32 ``(inner, columns)`` with any strides, and ``(columns,)``.

        Args:
            dtype: what is multiplied. Of bfloat16, `inner` must be even.
        """
        _check(weight, torch.float32)
        inner, columns = weight.shape
        per_value = _per_value(dtype)
        if dtype not in self._pack or inner % per_value:
            raise TypeError(f"products of {dtype} with {inner} rows of a weight are not possible here")
        panels, values_per_panel = -(-columns // self._width), inner // per_value * self._width
        values, pack = torch.empty(panels * values_per_panel), self._pack[dtype]
        places = weight.data_ptr(), *weight.stride(), values.data_ptr(), inner // per_value, columns
        in_parts(panels, values_per_panel, lambda first, end: pack(*places, first, end))
        if bias is not None:
            padded = torch.zeros(panels * self._width)
            padded[:columns] = bias
            bias = padded
        return Panels(values, dtype, inner, columns, bias)

    def product(
        self, x: torch.Tensor, weight: Panels, finish: Finish = "store", out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x @ weight + bias``, stored in `out`, added to it, or stored after the tanh form of GELU.

        Args:
            x: ``(rows, inner)`` of the weight's type; in float32 with any strides, in bfloat16 dense.
            out: ``(rows, columns)`` of the same type, dense in rows; None makes one.
        """
        rows, dtype = len(x), weight.dtype
        out = x.new_empty(rows, weight.columns) if out is None else out
        _check(x, dtype, weight.inner)
        _check(out, dtype, weight.columns)
        if len(out) != rows or out.stride(1) != 1:
            raise TypeError(f"products fill {rows} dense rows, got {tuple(out.shape)}, strides {out.stride()}")
        per_value = _per_value(dtype)
        if per_value > 1 and not x.is_contiguous():
            raise TypeError(f"products of {dtype} take dense rows, got strides {x.stride()}")
        run_product, inner = self._product[dtype], weight.inner // per_value
        call = _Product(
            x.data_ptr(), x.stride(0) // per_value, x.stride(1), weight.values.data_ptr(),
            None if weight.bias is None else weight.bias.data_ptr(),
            out.data_ptr(), out.stride(0), rows, inner, weight.columns, finish == "add", finish == "gelu",
        )  # fmt: skip

        def run(first: int, end: int) -> None:
            if run_product(call, first, end):
                raise MemoryError("no memory for a product's rows")

        # A panel's time is that of its products, or of reading it from memory if there are few rows.
        in_parts(-(-weight.columns // self._width), inner * (16 + rows), run)
        return out


def _per_value(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.bfloat16 else 1


def _check(matrix: torch.Tensor, dtype: torch.dtype, columns: int | None = None) -> None:
    is_right = matrix.dtype == dtype and matrix.ndim == 2 and matrix.device.type == "cpu"
    if not is_right or columns not in (None, matrix.shape[1]):
        raise TypeError(
            f"products take {dtype} matrices of {columns or 'any'} columns on the CPU, got {matrix.dtype} of "
            f"{tuple(matrix.shape)} on {matrix.device}"
        )


PRODUCTS = Products(LIBRARY) if KERNELS else None
