"""All errors of this package.

PolyheadClientError
├── UsageError              a text, an option or a setting cannot be used (also a ValueError)
│   └── UnknownNameError    no head or label has this name (also a KeyError)
├── ServerUnreachableError  the connection failed or broke (also a ConnectionError)
├── RequestTimeoutError     no answer in time (also a TimeoutError)
├── NotReadyError           the server did not become ready in time (also a TimeoutError)
├── ServerOverloadedError   the server sheds load
├── ModelNotFoundError      the server does not serve this model or version
├── RequestRejectedError    the server says that the request is wrong
├── ServerFailedError       the server failed on a good request
├── BadResponseError        the answer breaks the wire contract
└── TextError               a text has no answer; raised only with ``raise_on_error=True`` (also a ValueError)

Each message is one line that says what happened and what to do. Without ``raise_on_error`` a text without an answer
raises nothing: see `polyhead_client.prediction.Prediction.error`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException

from tritonclient.utils import InferenceServerException

LONGEST_DETAIL = 300  # characters; a server's message may contain a whole traceback


class PolyheadClientError(Exception):
    """Base class of all errors of this package.

    Attributes:
        model: the model that was asked, if known.
        replica: the address of the server that was asked, as in the client's settings, if known.
        status: the server's status, if known: ``"503"`` over HTTP, ``"UNAVAILABLE"`` over gRPC.
        advice: what to do about it.
    """

    advice = "read the message"

    def __init__(
        self, message: str, *, model: str | None = None, replica: str | None = None, status: str | None = None
    ) -> None:
        super().__init__(message)
        self.model = model
        self.replica = replica
        self.status = status


class UsageError(PolyheadClientError, ValueError):
    """A text, an option or a setting cannot be used."""

    advice = "correct the argument or the text that the message names"


class UnknownNameError(UsageError, KeyError):
    """No head or label has this name."""

    advice = "use one of the names in the message; Client.schema() has them all"

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would put the sentence in quotes


class ServerUnreachableError(PolyheadClientError, ConnectionError):
    """The connection failed or broke.

    Attributes:
        request_sent: whether the server may have read the request before the connection broke.
    """

    advice = "check that the server runs, and the address, port and protocol"
    request_sent = False


class RequestTimeoutError(PolyheadClientError, TimeoutError):
    """No answer in time."""

    advice = "allow more time with timeout_s, or send less at a time"


class NotReadyError(PolyheadClientError, TimeoutError):
    """The server did not become ready in time."""

    advice = "read the server's log, or wait longer"


class ServerOverloadedError(PolyheadClientError):
    """The server sheds load.

    Attributes:
        retry_after_s: how long the server asked to wait; None if it did not say.
    """

    advice = "try again later, lower the concurrency, or add replicas"
    retry_after_s: float | None = None


class ModelNotFoundError(PolyheadClientError):
    """The server does not serve this model or version."""

    advice = "check the model's name and version"


class RequestRejectedError(PolyheadClientError):
    """The server says that the request is wrong."""

    advice = "correct what the server names; for 401 and 403 the API key or headers"


class ServerFailedError(PolyheadClientError):
    """The server failed on a good request.

    Attributes:
        not_computed: Triton could not pass the request to the model's process, because that is dead or the shared
            memory between the two is full. Another replica may answer.
    """

    advice = "see the server's log"
    not_computed = False


class BadResponseError(PolyheadClientError):
    """The answer breaks the wire contract."""

    advice = "check that this is a Polyhead model, this protocol's port, and no newer than the client knows"


class TextError(PolyheadClientError, ValueError):
    """A text has no answer, and the caller passed ``raise_on_error=True``.

    Attributes:
        position: the position of the text in the list.
        reason: what the server says about it.
    """

    advice = "correct or drop the text, or read Prediction.error instead of raise_on_error"
    position = 0
    reason = ""


class NotConnectedError(ConnectionError):
    """A transport could not connect, so nothing was sent. Callers get ServerUnreachableError."""


def may_have_crashed_server(error: PolyheadClientError) -> bool:
    """Whether a server or model process died that may have held the request. The request may be the cause."""
    if isinstance(error, ServerUnreachableError):
        return error.request_sent
    return isinstance(error, ServerFailedError) and error.not_computed


NO_SUCH_MODEL = ("unknown model", "no available versions", "is not at ready state")
BROKE = ("connection reset", "socket closed", "broken pipe", "stream removed", "goaway")
NOBODY_LISTENS = (
    "failed to connect", "connection refused", "dns resolution", "errors resolving", "timed out connecting", *BROKE
)  # fmt: skip
# Triton's words when a Python model's process is dead (also for the requests it held) or its shared memory is full.
NOT_COMPUTED = ("stub process", "shared memory pool")
CLOSED = ("this protocol is restricted", "this api is restricted")
REJECTING = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "PERMISSION_DENIED", "UNAUTHENTICATED")

# What tritonclient and the libraries below it raise. Anything else is a bug and passes through.
TRANSPORT_ERRORS = (
    InferenceServerException, HTTPException, OSError, ValueError, LookupError, TypeError, AttributeError,
    RecursionError, struct.error,
)  # fmt: skip


@contextmanager
def mapped(*, model: str, replica: str, protocol: str, timeout_s: float) -> Iterator[None]:
    """Replaces the exceptions of tritonclient and the transports by errors of this tree."""
    try:
        yield
    except PolyheadClientError:
        raise
    except TRANSPORT_ERRORS as error:
        raise from_transport(error, model=model, replica=replica, protocol=protocol, timeout_s=timeout_s) from error


def from_transport(
    error: Exception, *, model: str, replica: str, protocol: str, timeout_s: float
) -> PolyheadClientError:
    """The error for an exception of tritonclient or a transport. Only this function knows Triton's words."""
    status: str | None = None
    detail = str(error) or type(error).__name__
    if isinstance(error, InferenceServerException):
        status = str(error.status()).removeprefix("StatusCode.") if error.status() else None
        detail = str(error.message() or error)
    detail = one_line(detail)
    place = {"model": model, "replica": replica, "status": status}

    def has(words: Iterable[str]) -> bool:
        return any(word in detail.lower() for word in words)

    if isinstance(error, TimeoutError) or status == "DEADLINE_EXCEEDED":
        return RequestTimeoutError(f"{replica} did not answer within {timeout_s:g} s; allow more time", **place)
    if has(NO_SUCH_MODEL) or status in ("404", "NOT_FOUND"):
        message = f"{replica} does not serve model {model!r} ({detail}); check its name and version"
        return ModelNotFoundError(message, **place)
    # gRPC says UNAVAILABLE if nobody listens, if a running server sheds load, and if the server restricts this API.
    if isinstance(error, OSError) or (status == "UNAVAILABLE" and has(NOBODY_LISTENS)):
        lost = ServerUnreachableError(f"no connection to {replica} ({detail}); is the server running?", **place)
        lost.request_sent = not isinstance(error, NotConnectedError) if status is None else has(BROKE)
        return lost
    if status is None:
        message = f"{replica} gave no Triton response ({detail}); is it a Triton server, and this its {protocol} port?"
        return BadResponseError(message, **place)
    if has(CLOSED):
        return RequestRejectedError(f"{replica} rejected the request: {detail}", **place)
    if status in ("503", "429", "UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        shed = ServerOverloadedError(f"{replica} is overloaded ({detail}); try again later", **place)
        shed.retry_after_s = getattr(error, "retry_after_s", None)
        return shed
    if status.startswith("4") or status in REJECTING:
        return RequestRejectedError(f"{replica} rejected the request: {detail}", **place)
    failed = ServerFailedError(f"{replica} failed on the request ({detail}); see the server's log", **place)
    failed.not_computed = has(NOT_COMPUTED)
    return failed


def one_line(text: str) -> str:
    """Makes one line of a text and shortens it for a message."""
    folded = " ".join(text.split())
    return folded if len(folded) <= LONGEST_DETAIL else folded[: LONGEST_DETAIL - 1] + "…"
