"""The precisions of the engine's linear layers: their tolerances, and the fastest one here.

Imports torch only inside functions, so that command lines can name the precisions without loading it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, get_args

from polyhead.errors import OptionError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# How far a score may be from its golden score. For a regression it is a share of the spread of its training targets
# (`polyhead.gate.distances`). This is the only place for these numbers; SCHEMA carries the one that applies
# (`Predictor.schema_json`).
TOLERANCE: dict[Precision, float] = {
    "fp32": 1e-4,  # float32 weights, activations and sums
    "bf16": 0.03,  # bfloat16 weights and activations, float32 sums
    "int8": 0.05,  # 8-bit weights and activations with a scale per column and per row, int32 sums; CPU only
}


def requested_precision(precision: str | None) -> str:
    """The precision that the caller names, else the environment's POLYHEAD_PRECISION, else ``auto``."""
    return precision or os.environ.get("POLYHEAD_PRECISION") or "auto"


def fastest_precision(device: torch.device) -> Precision:
    """bf16 if the hardware multiplies bfloat16, else fp32; int8 is used only if it is named."""
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def check_precision(name: str, device: torch.device) -> Precision:
    """Returns the precision of that name.

    Raises:
        OptionError: there is no such precision, or the device has no kernels for it.
    """
    if name not in PRECISIONS:
        raise OptionError(f"precision must be one of {['auto', *PRECISIONS]}, got {name!r}")
    if name == "int8" and device.type != "cpu":
        raise OptionError("precision 'int8' is for the CPU; on a GPU take 'auto' or 'bf16'")
    return name
