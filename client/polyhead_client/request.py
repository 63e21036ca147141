"""From rows and options to an inference request; nothing here talks to a server.

Works for both of tritonclient's modules: ``http`` and ``grpc`` name their classes alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np

from polyhead_client.errors import UsageError


@dataclass(frozen=True, slots=True)
class InferRequest:
    """The arguments of tritonclient's ``infer``."""

    inputs: list[Any]
    outputs: list[Any]
    parameters: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One exchange with a server: what is asked of which model."""

    kind: Literal["infer", "config", "ready", "statistics"]
    model: str
    version: str
    infer: InferRequest | None = None
    texts: int = 0


def build_request(
    module: ModuleType, rows: Sequence[bytes], outputs: Sequence[str], parameters: dict[str, int | float]
) -> InferRequest:
    """Builds one inference request.

    Args:
        module: ``tritonclient.http`` or ``tritonclient.grpc``.
        rows: texts as UTF-8, at most as many as the server's ``max_batch_size``.
        outputs: names of the outputs to compute.
        parameters: of `build_parameters`.
    """
    column = np.empty((len(rows), 1), dtype=np.object_)  # not a bytes dtype: that drops trailing NULs
    column[:, 0] = rows
    tensor = module.InferInput("TEXT", list(column.shape), "BYTES")
    tensor.set_data_from_numpy(column)
    asked = [module.InferRequestedOutput(name) for name in outputs]
    return InferRequest([tensor], asked, parameters)


def build_parameters(top_k: int | None, threshold: float | None) -> dict[str, int | float]:
    """Request parameters of the options that were given.

    Raises:
        UsageError: an option is of the wrong type or out of range.
    """
    parameters: dict[str, int | float] = {}
    if top_k is not None:
        parameters["top_k"] = check_count("top_k", top_k)
    if threshold is not None:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise UsageError(f"threshold must be a number in [0, 1], got {threshold!r}")
        # gRPC types an int otherwise than a float, and the server wants a float. NaN fails the comparison.
        parameters["threshold"] = float(threshold)
    return parameters


def check_seconds(name: str, value: float) -> float:
    """A finite, positive number of seconds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} must be a positive number of seconds, got {value!r}")
    return float(value)


def check_count(name: str, value: int) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
