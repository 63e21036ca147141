"""What model.py uses of ``triton_python_backend_utils``, which exists only inside Triton's model process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

INPUT_OUTPUTS = ("PREDICTION", "SCORES", "TOKEN_COUNT", "SCHEMA")


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """A load that fails."""


class TritonError(Exception):
    """What goes into a response."""

    INTERNAL = "internal"
    INVALID_ARG = "invalid_arg"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Logger:
    """Keeps what is logged."""

    lines: list[str] = []  # noqa: RUF012 - shared by all, as Triton's is

    @classmethod
    def log_error(cls, message: str) -> None:
        """Takes ASCII only: the model process may have no other encoding."""
        message.encode("ascii")
        cls.lines.append(message)

    log_warn = log_error


@dataclass
class Tensor:
    """A named array."""

    name: str
    array: Any

    def as_numpy(self) -> Any:
        """The array, or the error that Triton raises for damaged BYTES."""
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


@dataclass
class InferenceResponse:
    """Tensors or an error."""

    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def __getitem__(self, name: str) -> Any:
        return next(tensor.array for tensor in self.output_tensors if tensor.name == name)


@dataclass
class Request:
    """A request as model.py sees it."""

    text: Any
    raw_parameters: str | Exception = ""
    outputs: tuple[str, ...] = INPUT_OUTPUTS

    def parameters(self) -> str:
        """The JSON string, or the error that Triton raises for invalid UTF-8."""
        if isinstance(self.raw_parameters, Exception):
            raise self.raw_parameters
        return self.raw_parameters

    def requested_output_names(self) -> list[str]:
        """What the caller wants to have."""
        return list(self.outputs)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    """The one input, or None."""
    return Tensor(name, request.text) if name == "TEXT" and request.text is not None else None


def texts(*rows: bytes) -> Any:
    """A BYTES tensor ``[n, 1]``."""
    array = np.empty((len(rows), 1), dtype=np.object_)
    array[:, 0] = rows
    return array
