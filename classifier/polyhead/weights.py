"""The weights of a checkpoint: float32 tensors of the shapes that its config means, all of them finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from polyhead.body import Body
from polyhead.checkpoint_files import check_is_file
from polyhead.errors import CheckpointError

MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")  # constant masks that transformers saved before 4.31
# Each value of these is a float32 too. Others would be rounded (float64), or are no weights (integers).
EXACT_DTYPES = ("F32", "F16", "BF16")

Shape = tuple[int, ...]


def read_weights(path: Path, body: Body, head_shapes: Callable[[], Mapping[str, Shape]]) -> dict[str, torch.Tensor]:
    """The tensors ``body_model.*`` and ``head.*`` of a safetensors file, as float32.

    The file's header is compared with the config first: nothing is allocated for what a wrong config means.

    Args:
        head_shapes: the head's tensors. Called when the body's shapes are proved, because a head may be as wide.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or type, or holds a number that is not finite.
    """
    check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = {name for name in file.keys() if not name.endswith(MASK_BUFFERS)}  # noqa: SIM118
            expected: list[str] = []
            for name, shape in body.tensor_shapes():
                expected.append(f"body_model.{name}")
                _check_header(path, file, names, expected[-1], shape)
            for name, shape in head_shapes().items():
                expected.append(f"head.{name}")
                _check_header(path, file, names, expected[-1], shape)
            if unknown := names.difference(expected):
                raise CheckpointError(
                    f"{path}: tensor {min(unknown)!r} belongs to no part of the model that config.json describes"
                )
            return {name: finite_tensor(path, name, file.get_tensor(name).float()) for name in expected}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged or not a safetensors file ({error})") from error


def _check_header(path: Path, file: Any, names: set[str], name: str, shape: Shape) -> None:
    if name not in names:
        raise CheckpointError(f"{path}: tensor {name!r} of shape {shape} is missing")
    header = file.get_slice(name)
    if (found := tuple(header.get_shape())) != shape:
        raise CheckpointError(f"{path}: tensor {name!r} must have shape {shape}, got {found}")
    if (dtype := header.get_dtype()) not in EXACT_DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} must be one of {', '.join(EXACT_DTYPES)}, got {dtype}")


def finite_tensor(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, if all of its values are finite; raises CheckpointError if one is not."""
    if tensor.numel():
        lowest, highest = torch.aminmax(tensor)  # NaN, if there is one
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            place = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            value = tensor[tuple(place)].item()
            raise CheckpointError(
                f"{path}: tensor {name!r} holds {value} at {place}; weights must be finite numbers of float32"
            )
    return tensor
