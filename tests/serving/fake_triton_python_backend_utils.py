"""What model.py uses of ``triton_python_backend_utils``, which exists only inside Triton's model process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
INPUT_OUTPUTS = ("PREDICTION", "SCORES", "TOKEN_COUNT", "SCHEMA")


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """A load that fails."""


class TritonError(Exception):
    """What goes into a response."""

    INTERNAL = "internal"
    INVALID_ARG = "invalid_arg"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Logger:
    """Keeps what is logged."""

    lines: list[str] = []  # noqa: RUF012 - shared by all, as Triton's is

    @classmethod
    def log_error(cls, message: str) -> None:
        """Accepts only ASCII: the model process may have no other encoding."""
        message.encode("ascii")
        cls.lines.append(message)

    log_warn = log_error
    infos: list[str] = []  # noqa: RUF012

    @classmethod
    def log_info(cls, message: str) -> None:
        """Keeps information apart from warnings."""
        message.encode("ascii")
        cls.infos.append(message)


class Metric:
    """A value that may go up, or buckets' sum and count; messages in the style of the real one's."""

    def __init__(self, family: MetricFamily, labels: dict[str, str], buckets: list[float] | None = None) -> None:
        if (buckets is not None) != (family.kind == MetricFamily.HISTOGRAM):
            raise ValueError("Unexpected buckets found." if buckets else "Missing required buckets.")
        self.kind = family.kind
        self.values = family.values.setdefault(tuple(sorted(labels.items())), [])

    def increment(self, value: float) -> None:
        """Adds to a counter, which must not fall, or to a gauge."""
        if self.kind == MetricFamily.HISTOGRAM or (self.kind == MetricFamily.COUNTER and value < 0):
            raise TritonModelException("Failed to increment metric value")
        self.values.append(value)

    def set(self, value: float) -> None:
        """Replaces a gauge's value."""
        if self.kind != MetricFamily.GAUGE:
            raise TritonModelException("Failed to set metric value")
        self.values[:] = [value]

    def observe(self, value: float) -> None:
        """Takes a histogram's observation."""
        if self.kind != MetricFamily.HISTOGRAM:
            raise TritonModelException("Failed to observe metric value")
        self.values.append(value)


class MetricFamily:
    """Metrics of one name; asked for again, the same family as long as the kind is the same."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    registry: dict[str, MetricFamily] = {}  # noqa: RUF012 - the server's, shared by all models

    def __init__(self, name: str, description: str, kind: int) -> None:
        known = self.registry.setdefault(name, self)
        if known.kind_or(kind) != kind:
            raise TritonModelException("Family name already exists with different type")
        self.kind = kind
        self.values: dict[tuple[tuple[str, str], ...], list[float]] = known.values if known is not self else {}

    def kind_or(self, kind: int) -> int:
        """Its kind, once it has one."""
        return getattr(self, "kind", kind)

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
        """A metric of this family."""
        return Metric(self, labels, buckets)

    @classmethod
    def value(cls, name: str, **labels: str) -> list[float]:
        """What was added to or observed by the metrics of a family that have these labels."""
        wanted = set(labels.items())
        return [value for key, values in cls.registry[name].values.items() if wanted <= set(key) for value in values]


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


class ResponseSender:
    """Takes one final response, as in a model that is not decoupled."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []
        self.error: Exception | None = None
        self.cancelled = False
        self.arrived = threading.Event()

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int) -> None:
        """Closes the sender, whether or not the response arrives."""
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        assert not self.sent, "Unable to send response. Response sender has been closed."
        self.sent.append(response)
        self.arrived.set()
        if self.error:
            raise self.error


@dataclass
class Request:
    """A request as model.py sees it."""

    text: Any
    raw_parameters: str | Exception = ""
    outputs: tuple[str, ...] = INPUT_OUTPUTS
    cancelled: bool = False
    timeout_us: int = 0
    id: str | Exception = ""
    sender: ResponseSender = field(default_factory=ResponseSender)

    def get_response_sender(self) -> ResponseSender:
        """The one sender."""
        self.sender.cancelled = self.cancelled
        return self.sender

    def timeout(self) -> int:
        """Microseconds that the caller waits; 0 if it does not say so."""
        return self.timeout_us

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        return self.cancelled

    def parameters(self) -> str:
        """The JSON string, or the error that Triton raises for invalid UTF-8."""
        if isinstance(self.raw_parameters, Exception):
            raise self.raw_parameters
        return self.raw_parameters

    def request_id(self) -> str:
        """The caller's name of the request, or the error that Triton raises for invalid UTF-8."""
        if isinstance(self.id, Exception):
            raise self.id
        return self.id

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
