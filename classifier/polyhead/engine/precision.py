"""Precisions of the engine's linear layers, and which of them a device is quick at."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from polyhead.errors import OptionError

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def fastest_precision(device: torch.device) -> Precision:
    """The fastest precision that keeps nearly all of float32's digits: bf16 where the hardware multiplies in it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def check_precision(name: str, device: torch.device) -> Precision:
    """The precision of that name.

    Raises:
        OptionError: there is none, or the device has no kernels for it.
    """
    if name not in PRECISIONS:
        raise OptionError(f"precision must be one of {['auto', *PRECISIONS]}, got {name!r}")
    if name == "int8" and device.type != "cpu":
        raise OptionError("precision 'int8' is for the CPU; on a GPU take 'auto' or 'bf16'")
    return name
