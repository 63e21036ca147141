"""Matrix products on AMX's tiles (amx.c), called by ctypes: bfloat16 and 8 bits, with what follows them fused in.

They run on Intel processors with AMX (Sapphire Rapids and later), if Linux lets the process use tiles. Elsewhere, and
if `AMXProducts.check` finds a wrong product at load, `AMX` is None and oneDNN computes the products.
A row of a result has the same bits whatever the other rows are and however columns are divided among threads.
See docs/decisions/0007-engine.md.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F

from polyhead.engine.cpu.kernels import GELU_FLOOR, check_tensor, in_parts, open_library

logger = logging.getLogger(__name__)

MULTIPLE = 64  # rows and columns of a weight must be multiples of it
PANEL = 32  # columns that one thread computes at least
TILE_ROWS = 16
LEVELS = 255  # of 8-bit GELU; every processor with AMX has VNNI
ZERO_POINT = 128  # of other 8-bit inputs

Finish = Literal["to_bf16", "to_float", "add_bf16", "add_float"]

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = (("base", _POINTER), ("row", _COUNT), ("tile", _COUNT), ("step", _COUNT))


class _Product(ctypes.Structure):
    _fields_ = (
        ("rows", _COUNT), ("inner", _COUNT), ("columns", _COUNT), ("x", _Matrix), ("y", _Matrix), ("weight", _POINTER),
        ("bias", _POINTER), ("row_scales", _POINTER), ("column_scales", _POINTER), ("offsets", _POINTER),
        ("scaled_parts", _COUNT),
    )  # fmt: skip


_PRODUCTS = (
    "bf16_to_bf16", "bf16_to_float", "bf16_add_bf16", "bf16_add_float", "bf16_gelu",
    "int8_to_bf16", "int8_to_float", "int8_add_float", "int8_gelu",
)  # fmt: skip
_MLPS = ("mlp_bf16_add_bf16", "mlp_bf16_add_float", "mlp_int8_add_float")
NO_MATRIX = _Matrix(None, 0, 0, 0)


@dataclass(frozen=True)
class PackedWeight:
    """A linear layer's weight as tiles, in memory that the kernel may put on huge pages; and its bias.

    Args:
        inner: rows of the weight ``(inner, columns)``.
        bias: float32 ``(columns,)``; for 8-bit GELU as input ``(parts, columns)``, see `AMXProducts.pack_int8`.
        scales: of an 8-bit weight, float32 ``(columns,)``.
        offsets: int32 ``(columns,)``, what the input's zero point adds to each sum.
    """

    tiles: torch.Tensor
    inner: int
    columns: int
    bias: torch.Tensor
    scales: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    @property
    def is_int8(self) -> bool:
        """Whether the weight has 8 bits."""
        return self.scales is not None


def open_amx_library(path: Path) -> ctypes.CDLL:
    """Loads a library, and asks for the use of tiles.

    Raises:
        OSError: it cannot be loaded, was compiled from other sources, or this processor or Linux lacks AMX.
    """
    library = open_library(path)
    if reason := library.polyhead_amx_request():
        raise OSError(("the processor lacks AMX", "Linux does not let this process use AMX")[reason - 1])
    return library


class AMXProducts:
    """Typed and checked calls; columns are divided among as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Loads a library; raises OSError if it cannot be loaded or used here, or was compiled from other sources."""
        library = open_amx_library(path)
        self._products = {name: getattr(library, f"polyhead_amx_{name}") for name in _PRODUCTS}
        for call in self._products.values():
            call.argtypes = (ctypes.POINTER(_Product), _COUNT, _COUNT)
        self._mlps = {name: getattr(library, f"polyhead_amx_{name}") for name in _MLPS}
        for call in self._mlps.values():
            call.argtypes = (ctypes.POINTER(_Product), ctypes.POINTER(_Product))
        self._pack = {"bf16": library.polyhead_amx_pack_bf16, "int8": library.polyhead_amx_pack_int8}
        for call in self._pack.values():
            call.argtypes, call.restype = (_POINTER, _COUNT, _POINTER, _COUNT, _COUNT), None
        self._quantise = library.polyhead_amx_quantise_halves
        self._quantise.argtypes = (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT)
        self._quantise.restype = None
        self._int8_part = library.polyhead_amx_int8_part
        self._int8_part.argtypes, self._int8_part.restype = (_COUNT,), _COUNT

    def pack_bf16(self, weight: torch.Tensor, bias: torch.Tensor) -> PackedWeight:
        """Packs float32 ``(inner, columns)``, which may be some columns of a wider matrix, and ``(columns,)``."""
        tiles = self._tiles(weight, "bf16", torch.float32, 2)
        inner, columns = weight.shape
        return PackedWeight(tiles, inner, columns, bias.float().contiguous())

    def pack_int8(
        self, quantised: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, after_gelu: bool = False
    ) -> PackedWeight:
        """Packs int8 ``(inner, columns)`` with scales and bias ``(columns,)``.

        Args:
            after_gelu: the input is GELU's, raised by GELU_FLOOR, and each part of a row has its own scale. A part's
                bias subtracts what the floor adds to its result; the first part's has the bias itself.
        """
        tiles = self._tiles(quantised, "int8", torch.int8, 1)
        inner, columns = quantised.shape
        offsets = torch.zeros(columns, dtype=torch.int32)
        if after_gelu:
            sums = [part.sum(0, dtype=torch.int32) for part in quantised.split(self._int8_part(inner))]
            parts = -GELU_FLOOR * scales * torch.stack(sums)  # (parts, columns)
            parts[0] += bias
            return PackedWeight(tiles, inner, columns, parts.contiguous(), scales.contiguous(), offsets)
        offsets += ZERO_POINT * quantised.sum(0, dtype=torch.int32)
        return PackedWeight(tiles, inner, columns, bias.float().contiguous(), scales.contiguous(), offsets)

    def product(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        finish: Finish,
        out: torch.Tensor,
        row_scales: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Stores ``x @ weight + bias`` in `out`, or adds it to `out`; returns `out`.

        Args:
            x: bfloat16 ``(rows, inner)``; uint8 for an 8-bit weight.
            out: ``(rows, columns)``, bfloat16 or float32 as `finish` says.
            row_scales: of 8-bit `x`, float32 ``(rows,)``.
        """
        rows = len(x)
        check_tensor(x, torch.uint8 if weight.is_int8 else torch.bfloat16, rows, weight.inner)
        check_tensor(out, torch.bfloat16 if finish.endswith("bf16") else torch.float32, rows, weight.columns)
        if weight.is_int8:
            check_tensor(_needed(row_scales), torch.float32, rows)
        self._run(weight, finish, rows, _rows(x), _rows(out, PANEL), row_scales)
        return out

    def add_mlp(
        self,
        residual: torch.Tensor,
        x: torch.Tensor,
        up: PackedWeight,
        down: PackedWeight,
        row_scales: torch.Tensor | None = None,
    ) -> None:
        """Adds ``gelu(x @ up + bias) @ down + bias`` to `residual` ``(rows, columns)``, bfloat16 or float32.

        With one thread, what stands between the products stays in the second-level cache.
        """
        rows = len(x)
        check_tensor(x, torch.uint8 if up.is_int8 else torch.bfloat16, rows, up.inner)
        is_bf16 = residual.dtype == torch.bfloat16 and not up.is_int8
        check_tensor(residual, torch.bfloat16 if is_bf16 else torch.float32, rows, down.columns)
        if up.is_int8:
            check_tensor(_needed(row_scales), torch.float32, rows)
        if torch.get_num_threads() == 1:
            self._add_fused_mlp(residual, x, up, down, row_scales)
        else:
            self._add_divided_mlp(residual, x, up, down, row_scales)

    def _add_fused_mlp(
        self,
        residual: torch.Tensor,
        x: torch.Tensor,
        up: PackedWeight,
        down: PackedWeight,
        row_scales: torch.Tensor | None,
    ) -> None:
        first = _product(up, len(x), _rows(x), NO_MATRIX, row_scales)
        second = _product(down, len(x), NO_MATRIX, _rows(residual, PANEL), None)
        _succeed(self._mlps[f"mlp_{_kind(up)}_{_adds(residual)}"](first, second))

    def _add_divided_mlp(
        self,
        residual: torch.Tensor,
        x: torch.Tensor,
        up: PackedWeight,
        down: PackedWeight,
        row_scales: torch.Tensor | None,
    ) -> None:
        """The same bits; threads divide the columns of one product after the other."""
        rows, y = len(x), _rows(residual, PANEL)
        padded = -(-rows // TILE_ROWS) * TILE_ROWS
        hidden = torch.empty(padded * up.columns, dtype=torch.uint8 if up.is_int8 else torch.bfloat16)
        tiles, scales = _in_tiles(hidden, up.columns), None
        if up.is_int8:
            halves = torch.empty(rows, up.columns, dtype=torch.float16)
            self._run(up, "gelu", rows, _rows(x), _rows(halves, PANEL), row_scales)
            parts = len(down.bias)
            scales = torch.empty(parts, rows)
            places = halves.data_ptr(), hidden.data_ptr(), scales.data_ptr()
            in_parts(parts, rows * down.inner // parts,
                     lambda first, end: self._quantise(*places, rows, down.inner, first, end))  # fmt: skip
        else:
            self._run(up, "gelu", rows, _rows(x), tiles, None)
        self._run(down, _adds(residual), rows, tiles, y, scales)

    def check(self) -> None:
        """Compares small products with PyTorch's, in milliseconds; raises OSError if one is wrong."""
        random = torch.Generator().manual_seed(0)
        rows, width = 37, 832  # two parts; the last block of rows and its last tile are not full
        x, residual = torch.randn(2, rows, width, generator=random)
        up, down = torch.randn(2, width, width, generator=random) / 16
        bias = torch.randn(width, generator=random)
        up_bf16, down_bf16 = self.pack_bf16(up, bias), self.pack_bf16(down, bias)
        scales = x.abs().amax(1) / 127
        q = (x / scales[:, None] + ZERO_POINT).round().to(torch.uint8)
        packed = []
        for weight, after_gelu in ((up, False), (down, True)):
            steps = weight.abs().amax(0) / 127
            packed.append(self.pack_int8((weight / steps).round().to(torch.int8), steps, bias, after_gelu))
        wanted = torch.addmm(bias, x, up)
        found = self.product(x.bfloat16(), up_bf16, "to_float", torch.empty(rows, width))
        assert_near("bf16 product", found, wanted)
        found = self.product(x.bfloat16(), up_bf16, "to_bf16", torch.empty(rows, width, dtype=torch.bfloat16))
        assert_near("bf16 product", found, wanted)
        assert_near("int8 product", self.product(q, packed[0], "to_float", torch.empty(rows, width), scales), wanted)
        wanted = residual + torch.addmm(bias, F.gelu(wanted, approximate="tanh"), down)
        for add in (self._add_fused_mlp, self._add_divided_mlp):
            for dtype in (torch.float32, torch.bfloat16):
                found = residual.to(dtype, copy=True)
                add(found, x.bfloat16(), up_bf16, down_bf16, None)
                assert_near("bf16 MLP", found, wanted)
            found = residual.clone()
            add(found, q, packed[0], packed[1], scales)
            assert_near("int8 MLP", found, wanted)

    def _tiles(self, weight: torch.Tensor, kind: str, dtype: torch.dtype, size: int) -> torch.Tensor:
        inner, columns = weight.shape
        if weight.dtype != dtype or weight.stride(1) != 1 or inner % MULTIPLE or columns % MULTIPLE:
            raise TypeError(
                f"AMX packs {dtype} of multiples of {MULTIPLE}, dense in rows, got {weight.dtype} of "
                f"{tuple(weight.shape)}, strides {weight.stride()}"
            )
        tiles = _huge_pages(inner * columns * size)
        self._pack[kind](weight.data_ptr(), weight.stride(0), tiles.data_ptr(), inner, columns)
        return tiles

    def _run(
        self, weight: PackedWeight, finish: str, rows: int, x: _Matrix, y: _Matrix, row_scales: torch.Tensor | None
    ) -> None:
        call = self._products[f"{_kind(weight)}_{finish}"]
        product = _product(weight, rows, x, y, row_scales)
        # A panel's time is that of reading it from memory, or of its products if there are more than 64 rows.
        in_parts(weight.columns // PANEL, weight.inner * (16 + rows // 4),
                 lambda first, end: _succeed(call(product, first, end)))  # fmt: skip


def _kind(weight: PackedWeight) -> str:
    return "int8" if weight.is_int8 else "bf16"


def _adds(residual: torch.Tensor) -> str:
    return "add_bf16" if residual.dtype == torch.bfloat16 else "add_float"


def _product(weight: PackedWeight, rows: int, x: _Matrix, y: _Matrix, row_scales: torch.Tensor | None) -> _Product:
    return _Product(
        rows, weight.inner, weight.columns, x, y, weight.tiles.data_ptr(), weight.bias.data_ptr(),
        _pointer(row_scales), _pointer(weight.scales), _pointer(weight.offsets), weight.bias.ndim == 2,
    )  # fmt: skip


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _needed(scales: torch.Tensor | None) -> torch.Tensor:
    if scales is None:
        raise TypeError("8-bit rows need their scales")
    return scales


def _rows(matrix: torch.Tensor, columns: int = 0) -> _Matrix:
    """Row-major; a step is 64 bytes of an input, or so many columns of an output."""
    size = matrix.stride(0) * matrix.element_size()
    return _Matrix(matrix.data_ptr(), size, TILE_ROWS * size, columns * matrix.element_size() or 64)


def _in_tiles(values: torch.Tensor, columns: int) -> _Matrix:
    """Tiles of 16 rows by 64 bytes; rows are padded to whole tiles."""
    return _Matrix(values.data_ptr(), 64, TILE_ROWS * columns * values.element_size(), TILE_ROWS * 64)


def _huge_pages(size: int) -> torch.Tensor:
    """uint8 ``(size,)`` on huge pages if Linux has some: a core reads such a weight half as fast again."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:  # a kernel without transparent huge pages
            logger.debug("no huge pages: %s", error)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _succeed(error: int) -> None:
    if error:
        raise MemoryError("no memory for a product's sums")


def assert_near(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Raises OSError if results are further apart than rounding explains."""
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error < 0.03:
        raise OSError(f"a small {name} on AMX is off by {error:.2g} of its largest value")


class _Checked(Protocol):
    def check(self) -> None: ...


_Kind = TypeVar("_Kind", bound=_Checked)


def load_checked(kind: Callable[[Path], _Kind], name: str, fallback: str) -> _Kind | None:
    """Kernels of the library, if this processor has AMX and they pass their check; the log says what happened.

    Returns None if not, with a line in the log if it should work but does not: `fallback` says what happens instead.
    """
    if os.environ.get("POLYHEAD_AMX") == "off" or not torch.cpu._is_amx_tile_supported():
        return None
    try:
        kernels = kind(Path(__file__).with_name("kernels_AMX.so"))
        kernels.check()
    except (OSError, MemoryError) as error:
        logger.warning("the CPU engine runs without AMX for its %s; %s: %s", name, fallback, error)
        return None
    logger.info("the CPU engine computes its %s on AMX", name)
    return kernels


AMX = load_checked(AMXProducts, "bf16 and int8 products", "oneDNN computes them")
