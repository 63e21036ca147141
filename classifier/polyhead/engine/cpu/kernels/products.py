"""Matrix products in float32, bfloat16 and 8 bits (products.c), called by ctypes, with bias, GELU and sum fused in.

They are in the library of `kernels`. A row of a result has the same bits whatever the other rows are and however
columns are divided among threads. If no library fits, `PRODUCTS` is None and BLAS and oneDNN compute the products.
bfloat16 and 8 bits need a processor with AVX-512 bf16, which has VNNI too. See docs/decisions/0016-kernels.md.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from polyhead.engine.cpu.kernels import KERNELS, LIBRARY, check_tensor, in_parts, open_library

Finish = Literal["store", "add", "gelu"]

_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class _Product(ctypes.Structure):
    """``struct product`` of products.c."""

    _fields_ = (
        ("x", _POINTER), ("row", _COUNT), ("step", _COUNT), ("weight", _POINTER), ("bias", _POINTER),
        ("scales", _POINTER), ("row_scales", _POINTER), ("offsets", _POINTER), ("out", _POINTER), ("out_row", _COUNT),
        ("rows", _COUNT), ("inner", _COUNT), ("columns", _COUNT), ("adds", _INT), ("gelu", _INT),
    )  # fmt: skip


@dataclass(frozen=True)
class Panels:
    """A weight ``(inner, columns)`` in panels of some columns; all tensors are padded to whole panels.

    Attributes:
        values: float32. In each stand two neighbours of a column in bfloat16, or four of 8 bits.
        dtype: of what is multiplied by it: float32, bfloat16 or uint8.
        bias: float32, or None.
        scales: of an 8-bit weight's columns, float32.
        offsets: int32, what the inputs' zero point adds to each sum; None if that is 0.
    """

    values: torch.Tensor
    dtype: torch.dtype
    inner: int
    columns: int
    bias: torch.Tensor | None
    scales: torch.Tensor | None = None
    offsets: torch.Tensor | None = None


class Products:
    """Typed and checked calls; columns are divided among as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Loads a library; see `open_library`."""
        library = open_library(path)
        self._width = int(library.polyhead_panel_width())
        self.has_short_values = hasattr(library, "polyhead_product_bf16")  # bfloat16 and 8 bits
        names = {torch.float32: ""}
        if self.has_short_values:
            names |= {torch.bfloat16: "_bf16", torch.uint8: "_int8"}
        self._pack = {dtype: getattr(library, f"polyhead_pack{name}") for dtype, name in names.items()}
        self._product = {dtype: getattr(library, f"polyhead_product{name}") for dtype, name in names.items()}
        for dtype, call in self._pack.items():
            strides = () if dtype == torch.uint8 else (_COUNT, _COUNT)
            call.argtypes = (_POINTER, *strides, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT)
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
        values = self._packed(weight, dtype, *weight.stride())
        return Panels(values, dtype, inner, columns, None if bias is None else self.padded(bias))

    def pack_int8(
        self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, zero_point: int
    ) -> Panels:
        """Packs int8 ``(inner, columns)``, dense, with float32 scales and bias ``(columns,)``.

        Args:
            zero_point: of the inputs, which are uint8; `inner` must be a multiple of 4.
        """
        _check(weight, torch.int8)
        weight = weight.contiguous()
        inner, columns = weight.shape
        values = self._packed(weight, torch.uint8)
        offsets = self.padded(zero_point * weight.sum(0, dtype=torch.int32))
        shifted = None if bias is None else self.padded(bias)
        return Panels(values, torch.uint8, inner, columns, shifted, self.padded(scales), offsets)

    def padded(self, row: torch.Tensor) -> torch.Tensor:
        """``(columns,)`` with zeros up to the last panel's end."""
        return F.pad(row, (0, -len(row) % self._width))

    def product(
        self,
        x: torch.Tensor,
        weight: Panels,
        finish: Finish = "store",
        out: torch.Tensor | None = None,
        row_scales: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``x @ weight + bias``, stored in `out`, added to it, or stored after the tanh form of GELU.

        Args:
            x: ``(rows, inner)`` of the weight's type; in float32 with any strides, else dense.
            out: ``(rows, columns)``, dense in rows, bfloat16 if `x` is, else float32; None makes one.
            row_scales: of 8-bit `x`, float32 ``(rows,)``; None leaves them out.
        """
        rows, dtype = len(x), weight.dtype
        result = torch.float32 if dtype == torch.uint8 else dtype
        out = x.new_empty(rows, weight.columns, dtype=result) if out is None else out
        _check(x, dtype, weight.inner)
        _check(out, result, weight.columns)
        if row_scales is not None:
            check_tensor(row_scales, torch.float32, rows)
        if len(out) != rows or out.stride(1) != 1:
            raise TypeError(f"products fill {rows} dense rows, got {tuple(out.shape)}, strides {out.stride()}")
        per_value = _per_value(dtype)
        if per_value > 1 and not x.is_contiguous():
            raise TypeError(f"products of {dtype} take dense rows, got strides {x.stride()}")
        run_product, inner = self._product[dtype], weight.inner // per_value
        call = _Product(
            x.data_ptr(), x.stride(0) // per_value, x.stride(1), weight.values.data_ptr(), _pointer(weight.bias),
            _pointer(weight.scales), _pointer(row_scales), _pointer(weight.offsets), out.data_ptr(), out.stride(0),
            rows, inner, weight.columns, finish == "add", finish == "gelu",
        )  # fmt: skip

        def run(first: int, end: int) -> None:
            if run_product(call, first, end):
                raise MemoryError("no memory for a product's rows")

        # A panel's time is that of its products, or of reading it from memory if there are few rows. An eighth of it,
        # because a text has 48 products, and each waits for the other thread.
        in_parts(-(-weight.columns // self._width), inner * (16 + rows) // 8, run)
        return out

    def _packed(self, weight: torch.Tensor, dtype: torch.dtype, *strides: int) -> torch.Tensor:
        inner, columns = weight.shape
        per_value = _per_value(dtype)
        if dtype not in self._pack or inner % per_value:
            raise TypeError(f"products of {dtype} with {inner} rows of a weight are not possible here")
        panels, values_per_panel = -(-columns // self._width), inner // per_value * self._width
        values, pack = torch.empty(panels * values_per_panel), self._pack[dtype]
        places = weight.data_ptr(), *strides, values.data_ptr(), inner // per_value, columns
        in_parts(panels, values_per_panel, lambda first, end: pack(*places, first, end))
        return values


def _per_value(dtype: torch.dtype) -> int:
    """How many neighbours stand in the bits of a float32."""
    return 4 // dtype.itemsize


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(matrix: torch.Tensor, dtype: torch.dtype, columns: int | None = None) -> None:
    is_right = matrix.dtype == dtype and matrix.ndim == 2 and matrix.device.type == "cpu"
    if not is_right or columns not in (None, matrix.shape[1]):
        raise TypeError(
            f"products take {dtype} matrices of {columns or 'any'} columns on the CPU, got {matrix.dtype} of "
            f"{tuple(matrix.shape)} on {matrix.device}"
        )


PRODUCTS = Products(LIBRARY) if KERNELS else None
