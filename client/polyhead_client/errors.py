"""Everything that can go wrong between a caller and the answer.

PolyheadClientError
├── UsageError              what was asked cannot be sent: a text, an option, a protocol (also a ValueError)
├── ServerUnreachableError  no connection to the server (also a ConnectionError)
├── RequestTimeoutError     no answer in time (also a TimeoutError)
├── NotReadyError           the server did not become ready in time (also a TimeoutError)
├── ServerOverloadedError   the server sheds load: try again later
├── ModelNotFoundError      the server does not serve this model or version
├── RequestRejectedError    the server finds fault with the request
├── ServerFailedError       the server failed on a good request
└── BadResponseError        the answer is not what the wire contract says

Each message is one line that says what happened and what to do. A text without an answer is no exception: see
`polyhead_client.prediction.Prediction.error`.
"""

from __future__ import annotations

from http.client import HTTPException

from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

LONGEST_DETAIL = 300  # characters: a server's message may carry a whole traceback


class PolyheadClientError(Exception):
    """Base of all errors of this package.

    Attributes:
        model: the model that was asked, where known.
        url: the server that was asked, where known.
        status: what the server answered, where known: ``"503"`` over HTTP, ``"UNAVAILABLE"`` over gRPC.
    """

    def __init__(
        self, message: str, *, model: str | None = None, url: str | None = None, status: str | None = None
    ) -> None:
        super().__init__(message)
        self.model = model
        self.url = url
        self.status = status


class UsageError(PolyheadClientError, ValueError):
    """What was asked cannot be sent."""


class ServerUnreachableError(PolyheadClientError, ConnectionError):
    """No connection to the server."""


class RequestTimeoutError(PolyheadClientError, TimeoutError):
    """No answer in time."""


class NotReadyError(PolyheadClientError, TimeoutError):
    """The server did not become ready in time."""


class ServerOverloadedError(PolyheadClientError):
    """The server sheds load."""


class ModelNotFoundError(PolyheadClientError):
    """The server does not serve this model or version."""


class RequestRejectedError(PolyheadClientError):
    """The server finds fault with the request."""


class ServerFailedError(PolyheadClientError):
    """The server failed on a good request."""


class BadResponseError(PolyheadClientError):
    """The answer is not what the wire contract says."""


NO_SUCH_MODEL = ("unknown model", "no available versions", "is not at ready state")
NOBODY_LISTENS = (
    "failed to connect",
    "connection refused",
    "connection reset",
    "dns resolution",
    "errors resolving",
    "socket closed",
    "timed out connecting",
)
REJECTING = (
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)

# What tritonclient and the libraries below it raise; anything else is a defect and passes through.
TRANSPORT_ERRORS = (
    InferenceServerException,
    HTTPException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def from_transport(error: Exception, *, model: str, url: str, protocol: str, timeout_s: float) -> PolyheadClientError:
    """Maps what tritonclient raised to this tree; the one place that knows statuses and Triton's wordings."""
    status: str | None = None
    detail = str(error) or type(error).__name__
    if isinstance(error, InferenceServerException):
        status = str(error.status()).removeprefix("StatusCode.") if error.status() else None
        detail = str(error.message() or error)
    detail = one_line(detail)
    lowered = detail.lower()
    unreachable = f"no connection to {url} ({detail}); is the server running?"
    missing = f"{url} does not serve model {model!r} ({detail}); check its name and version"
    foreign = f"{url} gave no Triton response ({detail}); is it a Triton server, and this its {protocol} port?"
    match status:
        case _ if isinstance(error, TimeoutError) or status == "DEADLINE_EXCEEDED":
            message = f"{url} did not answer within {timeout_s:g} s; allow more time"
            return RequestTimeoutError(message, model=model, url=url, status=status)
        case _ if any(words in lowered for words in NO_SUCH_MODEL) or status in ("404", "NOT_FOUND"):
            return ModelNotFoundError(missing, model=model, url=url, status=status)
        case None if isinstance(error, OSError | HTTPConnectionClosed):
            return ServerUnreachableError(unreachable, model=model, url=url)
        # gRPC says UNAVAILABLE both when nobody listens and when a live server sheds load.
        case "UNAVAILABLE" if any(words in lowered for words in NOBODY_LISTENS):
            return ServerUnreachableError(unreachable, model=model, url=url, status=status)
        case "503" | "429" | "UNAVAILABLE" | "RESOURCE_EXHAUSTED":
            message = f"{url} is overloaded ({detail}); try again later"
            return ServerOverloadedError(message, model=model, url=url, status=status)
        case str() if status.startswith("4") or status in REJECTING:
            message = f"{url} rejected the request: {detail}"
            return RequestRejectedError(message, model=model, url=url, status=status)
        case str():
            message = f"{url} failed on the request ({detail}); see the server's log"
            return ServerFailedError(message, model=model, url=url, status=status)
        case _:
            return BadResponseError(foreign, model=model, url=url, status=status)


def one_line(text: str) -> str:
    """Folds white space and cuts what is too long for a message."""
    folded = " ".join(text.split())
    return folded if len(folded) <= LONGEST_DETAIL else folded[: LONGEST_DETAIL - 1] + "…"
