"""One request to a model: what it asks, until when, and its form over HTTP. Nothing here talks to a server."""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from numbers import Integral, Real
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np
import tritonclient.http
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from polyhead_client.errors import UsageError

HEADER_LENGTH = "Inference-Header-Content-Length"
GRPC_PACKAGE = "'tritonclient[grpc]'"

# Bounds the memory that a server can make a client use. 64 texts with 10,000 labels each have 40 MB.
LARGEST_ANSWER = 256 * 2**20  # bytes
LARGEST_ERROR = 64 * 2**10  # bytes that are read of the body of an error

Parameters = dict[str, int | float | str]
REQUEST_ID = "request_id"  # among the parameters, it becomes the request's id
PROBE: Parameters = {REQUEST_ID: "polyhead-probe"}  # of requests that the server neither counts nor logs


class Deadline:
    """The time left for a call and everything it does. Another thread may end it early with `cancel`.

    The time begins with the call's first request, not while the call waits for its turn. A `part` of it ends with it or
    before it.
    """

    def __init__(self, timeout_s: float, whole: Deadline | None = None) -> None:
        self.timeout_s = timeout_s
        self._whole = whole
        self._cancelled = False
        self._abort: Callable[[], None] | None = None
        self._ends: float | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it was ended early."""
        return self._cancelled or (self._whole is not None and self._whole.cancelled)

    def begin(self) -> None:
        """Lets the time begin now, if it has not begun."""
        if self._whole is not None:
            self._whole.begin()
        if self._ends is None:
            self._ends = time.monotonic() + self.timeout_s

    def part(self, timeout_s: float | None = None) -> Deadline:
        """A deadline inside this one, of at most so many seconds."""
        return Deadline(self.timeout_s if timeout_s is None else timeout_s, self)

    def remaining_s(self) -> float:
        """Seconds left; 0 once the deadline has passed or was cancelled."""
        if self.cancelled:
            return 0.0
        own_s = self.timeout_s if self._ends is None else max(self._ends - time.monotonic(), 0.0)
        return own_s if self._whole is None else min(own_s, self._whole.remaining_s())

    def on_cancel(self, abort: Callable[[], None] | None) -> None:
        """Sets what `cancel` calls to wake the thread that waits for a server now. None: no thread waits."""
        self._abort = abort
        if self._whole is not None:
            self._whole.on_cancel(abort)
        if abort is not None and self.cancelled:
            abort()

    def cancel(self) -> None:
        """Ends it now."""
        self._cancelled = True
        abort = self._abort
        if abort is not None:
            abort()


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of which model: an inference, or, without `outputs`, Triton's own readiness endpoint."""

    model: str
    version: str
    texts: int = 0  # how many
    inputs: list[Any] = field(default_factory=list)  # tritonclient's InferInput, of its HTTP or gRPC module
    outputs: list[Any] = field(default_factory=list)  # its InferRequestedOutput
    parameters: Parameters = field(default_factory=dict)
    request_id: str = ""

    @property
    def kind(self) -> str:
        """``infer`` or ``ready``."""
        return "infer" if self.outputs else "ready"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request on the wire; `path` begins with a slash."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer from the wire; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def import_extra(module: str, package: str) -> ModuleType:
    """Imports a module that a plain installation lacks.

    Raises:
        UsageError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    # tritonclient turns a missing grpc into a RuntimeError that names tritonclient's own extra.
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"{module} cannot be imported: pip install {package}") from error


def infer_call(
    model: str,
    rows: Sequence[bytes],
    output: str,
    parameters: Parameters | None = None,
    version: str = "",
    module: ModuleType = tritonclient.http,
) -> Call:
    """A call for one output of a model.

    Args:
        model: the model's name.
        rows: texts as UTF-8.
        output: the output's name.
        parameters: from `build_parameters`, or `PROBE`.
        version: the newest if empty.
        module: ``tritonclient.http`` or ``tritonclient.grpc``, which have the same class names.
    """
    column = np.empty((len(rows), 1), dtype=np.object_)  # not a bytes dtype, because that drops trailing NULs
    column[:, 0] = rows
    tensor = module.InferInput("TEXT", list(column.shape), "BYTES")
    tensor.set_data_from_numpy(column)
    sent = dict(parameters or {})
    request_id = str(sent.pop(REQUEST_ID, ""))
    return Call(model, version, len(rows), [tensor], [module.InferRequestedOutput(output)], sent, request_id)


def build_parameters(
    top_k: int | None = None,
    threshold: float | None = None,
    reject_below: float | None = None,
    private: bool = False,
) -> Parameters:
    """Request parameters for the options that are not None.

    Raises:
        UsageError: an option has the wrong type or is out of range.
    """
    parameters: Parameters = {}
    if top_k is not None:
        parameters["top_k"] = check_count("top_k", top_k)
    for name, value in (("threshold", threshold), ("reject_below", reject_below)):
        if value is None:
            continue
        if not is_number(value) or not 0 <= value <= 1:
            raise UsageError(f"{name} must be a number in [0, 1], got {value!r}")  # NaN fails the comparison
        # gRPC sends an int with another type than a float, and the server expects a float.
        parameters[name] = float(value)
    if not isinstance(private, bool):
        raise UsageError(f"private must be True or False, got {private!r}")
    if private:  # older servers do not know it
        parameters["private"] = True
    return parameters


def check_seconds(name: str, value: float) -> float:
    """Checks that a value is a finite, positive number of seconds."""
    if not (is_number(value) and value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} must be a positive number of seconds, got {value!r}")
    return float(value)


def check_count(name: str, value: int) -> int:
    """Checks that a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def is_number(value: object) -> bool:
    """Whether it is a real number of Python or NumPy. A bool is not a number here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def encode(call: Call, headers: Mapping[str, str], remaining_s: float) -> HttpRequest:
    """A call as an HTTP request in Triton's binary form.

    The request tells the server how long the caller waits, so that the server can drop it after that.
    """
    headers = {**headers, "Accept-Encoding": "identity"}  # otherwise aiohttp asks for gzip, which costs Triton time
    path = f"/v2/models/{quote(call.model, safe='')}"
    if call.version:
        path += f"/versions/{quote(call.version, safe='')}"
    if call.kind == "ready":
        return HttpRequest("GET", f"{path}/ready", headers)
    body, header_length = InferenceServerClient.generate_request_body(
        call.inputs,
        outputs=call.outputs,
        request_id=call.request_id,
        timeout=max(int(remaining_s * 1e6), 1),
        parameters=call.parameters,
    )
    described = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    return HttpRequest("POST", f"{path}/infer", {**headers, **described}, body)


def decode(call: Call, reply: HttpReply) -> Any:
    """The answer to a call: tritonclient's InferResult, or for ``ready`` a bool.

    Raises:
        InferenceServerException: the server reports an error.
        ValueError, LookupError, TypeError: the reply is not Triton's.
    """
    if call.kind == "ready" and reply.status in (200, 400):
        return reply.status == 200
    if reply.status != 200:
        error = InferenceServerException(_message(reply), status=str(reply.status))
        error.retry_after_s = _retry_after_s(reply.headers.get("retry-after"))
        raise error
    length = reply.headers.get(HEADER_LENGTH.lower())
    return InferenceServerClient.parse_response_body(reply.body, header_length=None if length is None else int(length))


def _message(reply: HttpReply) -> str:
    text = reply.body.decode("utf-8", errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return text or f"HTTP status {reply.status} without a message"


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
