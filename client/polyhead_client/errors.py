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

import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

from tritonclient.utils import InferenceServerException

# Control characters, lone surrogates, and the separators of lines and paragraphs; and what turns the order around.
HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LONGEST_DETAIL = 300  # characters; a server's message may contain a whole traceback


class PolyheadClientError(Exception):
    """Base class of all errors of this package.

    Attributes:
        model: the model that was asked, if known.
        replica: the address of the server that was asked, as in the client's settings, if known.
        status: the server's status, if known: ``"503"`` over HTTP, ``"UNAVAILABLE"`` over gRPC.
        advice: what to do about it.
        answers: if a list was asked, the answers to its first texts, in order. To go on, ask for
            ``texts[len(error.answers):]``.
    """

    advice = "read the message"
    answers: Sequence[Any] = ()

    def __init__(
        self, message: str, *, model: str | None = None, replica: str | None = None, status: str | None = None
    ) -> None:
        super().__init__(message)
        self.model = model
        self.replica = replica
        self.status = status

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a server or a text


class UsageError(PolyheadClientError, ValueError):
    """A text, an option or a setting cannot be used."""

    advice = "correct the argument or the text that the message names"


class UnknownNameError(UsageError, KeyError):
    """No head or label has this name."""

    advice = "use one of the names in the message; Client.schema() has them all"

    def __str__(self) -> str:
        return printable(str(self.args[0]))  # KeyError would put the sentence in quotes


class ServerUnreachableError(PolyheadClientError, ConnectionError):
    """The connection failed or broke.

    Attributes:
        request_sent: whether the server may have read the request before the connection broke.
        permanent: whether asking again cannot help, for example because a certificate is not trusted.
    """

    advice = "check that the server runs, and the address, port and protocol"
    request_sent = False
    permanent = False


class RequestTimeoutError(PolyheadClientError, TimeoutError):
    """No answer in time.

    Attributes:
        waited_s: how long the request had; 0 if no request was sent.
    """

    advice = "allow more time with timeout_s, or send less at a time"
    waited_s = 0.0


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
            memory between the two is full; or a proxy got no answer from a server (502, 504). Another replica may
            answer.
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
    """Whether a server or model process died or hangs that may have held the request. The request may be the cause."""
    if isinstance(error, ServerUnreachableError):
        return error.request_sent
    if isinstance(error, RequestTimeoutError):
        return error.waited_s > 0
    return isinstance(error, ServerFailedError) and error.not_computed


NO_SUCH_MODEL = ("unknown model", "no available versions", "is not at ready state")
NOT_CONNECTED = (
    "failed to connect",
    "connection refused",
    "dns resolution",
    "errors resolving",
    "timed out connecting",
)
# gRPC's words when a connection ended after the request was sent; the last two when a proxy lost its server.
BROKE = (
    "connection reset", "socket closed", "broken pipe", "stream removed", "goaway", "transport closed", "rst_stream",
    "endpoint clos", "connection closed", "connection aborted", "ping timeout", "keepalive",
    "status: 502", "status: 504",
)  # fmt: skip
# Triton's words when a Python model's process is dead (also for the requests it held) or its shared memory is full; the
# proxy's when a server ended or is restarting. The request may be the cause.
NOT_COMPUTED = ("stub process", "shared memory pool", "ended before it answered", "the server is restarting")
TOO_LARGE = ("received message larger than max",)  # gRPC's own words, not the server's
RETRY_IN = re.compile(r"retry in (\d+(?:\.\d+)?) s\s*$")  # ends the message of a server that sheds load
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
    place = {"model": model, "replica": replica, "status": status}

    retry = RETRY_IN.search(detail)
    detail = one_line(detail)

    def has(words: Iterable[str]) -> bool:
        return any(word in detail.lower() for word in words)

    if isinstance(error, TimeoutError) or status == "DEADLINE_EXCEEDED":
        late = RequestTimeoutError(f"{replica} did not answer within {timeout_s:.3g} s; allow more time", **place)
        late.waited_s = timeout_s
        return late
    if has(NO_SUCH_MODEL) or status in ("404", "NOT_FOUND"):
        message = f"{replica} does not serve model {model!r} ({detail}); check its name and version"
        return ModelNotFoundError(message, **place)
    # gRPC says UNAVAILABLE if nobody listens, if a running server sheds load, and if the server restricts this API.
    if isinstance(error, OSError) or (status == "UNAVAILABLE" and retry is None and has((*NOT_CONNECTED, *BROKE))):
        lost = ServerUnreachableError(f"no connection to {replica} ({detail}); is the server running?", **place)
        not_sent = isinstance(error, NotConnectedError) if status is None else has(NOT_CONNECTED)
        lost.request_sent, lost.permanent = not not_sent, has(("certificate",))
        return lost
    if status is None or has(TOO_LARGE):
        message = f"{replica} gave no Triton response ({detail}); is it a Triton server, and this its {protocol} port?"
        return BadResponseError(message, **place)
    if has(CLOSED):
        return RequestRejectedError(f"{replica} rejected the request: {detail}", **place)
    if status in ("503", "429", "UNAVAILABLE", "RESOURCE_EXHAUSTED") and not has(NOT_COMPUTED):
        shed = ServerOverloadedError(f"{replica} is overloaded ({detail}); try again later", **place)
        shed.retry_after_s = float(retry[1]) if retry else getattr(error, "retry_after_s", None)
        return shed
    if status.startswith("4") or status in REJECTING:
        return RequestRejectedError(f"{replica} rejected the request: {detail}", **place)
    failed = ServerFailedError(f"{replica} failed on the request ({detail}); see the server's log", **place)
    failed.not_computed = has(NOT_COMPUTED) or status in ("502", "504")
    return failed


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey instead of showing it, and for line ends."""
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode("ascii") if unicodedata.category(one) in HIDDEN or one in TURNS else one
        for one in text
    )


def one_line(text: str) -> str:
    """Makes one line of a text and shortens it for a message."""
    folded = " ".join(text.split())
    return folded if len(folded) <= LONGEST_DETAIL else folded[: LONGEST_DETAIL - 1] + "…"
