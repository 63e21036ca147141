"""From texts and options to an inference request; nothing here talks to a server.

Works for both of tritonclient's modules: ``http`` and ``grpc`` name their classes alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from polyhead_client.errors import UsageError


@dataclass(frozen=True, slots=True)
class InferRequest:
    """The arguments of tritonclient's ``infer``."""

    inputs: list[Any]
    outputs: list[Any]
    parameters: dict[str, int | float] = field(default_factory=dict)


def build_request(
    module: ModuleType,
    texts: Sequence[str],
    outputs: Sequence[str],
    *,
    top_k: int | None = None,
    threshold: float | None = None,
) -> InferRequest:
    """Builds one request.

    Args:
        module: ``tritonclient.http`` or ``tritonclient.grpc``.
        texts: at most as many as the server's ``max_batch_size``.
        outputs: names of the outputs to compute.
        top_k: at least 1.
        threshold: in [0, 1].

    Raises:
        UsageError: a text or an option cannot be sent.
    """
    column = np.empty((len(texts), 1), dtype=np.object_)  # not a bytes dtype: that drops trailing NULs
    for position, text in enumerate(texts):
        column[position, 0] = encode_text(text, position)
    tensor = module.InferInput("TEXT", list(column.shape), "BYTES")
    tensor.set_data_from_numpy(column)
    asked = [module.InferRequestedOutput(name) for name in outputs]
    return InferRequest([tensor], asked, build_parameters(top_k, threshold))


def encode_text(text: object, position: int = 0) -> bytes:
    """UTF-8 bytes of a text; refuses what has none."""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise UsageError(f"text {position} must be a str, got {kind}; decode bytes, drop missing values")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UsageError(
            f"text {position} has a lone surrogate (U+{code:04X}) at character {error.start}; "
            "it has no UTF-8 form: read the text with errors='replace'"
        ) from error


def build_parameters(top_k: int | None, threshold: float | None) -> dict[str, int | float]:
    """Request parameters of the options that were given.

    Raises:
        UsageError: an option is of the wrong type or out of range.
    """
    parameters: dict[str, int | float] = {}
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise UsageError(f"top_k must be a whole number of at least 1, got {top_k!r}")
        parameters["top_k"] = top_k
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
