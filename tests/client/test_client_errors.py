"""How exceptions of tritonclient become errors of the client's tree."""

from __future__ import annotations

import pickle
import re

import pytest
from tritonclient.utils import InferenceServerException

import polyhead_client
from polyhead_client import errors
from polyhead_client.client import Client
from tests.client.fake_triton import FakeTriton


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("400", "request parameter top_k: bad", errors.RequestRejectedError),
        ("400", "Request for unknown model: 'x' is not found", errors.ModelNotFoundError),
        ("400", "Request for unknown model: 'x' version 9 is not at ready state", errors.ModelNotFoundError),
        ("404", "not found", errors.ModelNotFoundError),
        ("401", "who are you", errors.RequestRejectedError),
        ("500", "Stub process is not healthy", errors.ServerFailedError),
        ("502", "bad gateway", errors.ServerFailedError),
        ("503", "Exceeds maximum queue size", errors.ServerOverloadedError),
        ("503", "the server ended before it answered; try again once", errors.ServerFailedError),
        ("503", "the server is restarting; try again later", errors.ServerFailedError),
        ("503", "Request timeout expired", errors.ServerOverloadedError),
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size", errors.ServerOverloadedError),
        ("StatusCode.UNAVAILABLE", "This protocol is restricted, expecting header 'x'", errors.RequestRejectedError),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", errors.ServerUnreachableError),
        ("StatusCode.UNAVAILABLE", "errors resolving host:1: [field:hostname]", errors.ServerUnreachableError),
        ("StatusCode.INVALID_ARGUMENT", "TEXT: missing", errors.RequestRejectedError),
        ("StatusCode.NOT_FOUND", "no", errors.ModelNotFoundError),
        ("StatusCode.INTERNAL", "Stub process is not healthy", errors.ServerFailedError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", errors.RequestTimeoutError),
        ("StatusCode.RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", errors.BadResponseError),
        (None, "no status at all", errors.BadResponseError),
    ],
)
def test_statuses(status: str | None, message: str, kind: type[errors.PolyheadClientError]) -> None:
    """Each status has its class; if a status has two meanings, Triton's words decide."""
    mapped = errors.from_transport(
        InferenceServerException(message, status=status), model="m", replica="host:8000", protocol="http", timeout_s=3
    )
    assert type(mapped) is kind
    assert mapped.model == "m"
    assert mapped.replica == "host:8000"
    assert mapped.status == (status and status.removeprefix("StatusCode."))
    assert "host:8000" in str(mapped)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(111, "Connection refused"), errors.ServerUnreachableError),
        (OSError("name resolution"), errors.ServerUnreachableError),
        (TimeoutError("timed out"), errors.RequestTimeoutError),
        (ValueError("not JSON"), errors.BadResponseError),
        (KeyError("outputs"), errors.BadResponseError),
    ],
)
def test_errors_below_tritonclient(error: Exception, kind: type[errors.PolyheadClientError]) -> None:
    """Exceptions that tritonclient passes through have their class too."""
    assert type(errors.from_transport(error, model="m", replica="u", protocol="http", timeout_s=3)) is kind


def test_messages_are_one_short_line(fake: FakeTriton) -> None:
    """A server's traceback becomes one short line, and the cause stays attached."""
    fake.failure = (500, "Traceback:\n" + 50 * '  File "model.py", line 1\n')
    with Client(fake.url) as client, pytest.raises(errors.ServerFailedError) as caught:
        client.classify("text")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert isinstance(caught.value.__cause__, InferenceServerException)


def test_one_tree() -> None:
    """Every error in the docstring's tree has the base class and advice, and the package exports it."""
    drawn = re.findall(r"\b[A-Z]\w+Error\b(?=  )", errors.__doc__)
    assert len(drawn) == 11
    for name in drawn:
        kind = getattr(polyhead_client, name)
        assert issubclass(kind, polyhead_client.PolyheadClientError)
        assert kind.advice != polyhead_client.PolyheadClientError.advice


def test_errors_survive_pickling() -> None:
    """An error that is pickled keeps its message and attributes."""
    error = errors.ServerOverloadedError("busy", model="m", replica="host:8000", status="503")
    error.retry_after_s = 3.0
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.model, copy.replica, copy.status, copy.retry_after_s) == (
        "busy",
        "m",
        "host:8000",
        "503",
        3.0,
    )


def test_a_server_cannot_steer_the_terminal() -> None:
    """Escape sequences, line ends and turned directions in what it says are shown as escapes."""
    said = InferenceServerException("\x1b[2Jno\x9b31m\u202e", status="400")
    mapped = errors.from_transport(said, model="m", replica="h:1", protocol="http", timeout_s=3)
    assert str(mapped) == r"h:1 rejected the request: \x1b[2Jno\x9b31m\u202e"
    assert str(errors.UnknownNameError("no head '\x1b[2J'\nreally")) == r"no head '\x1b[2J'\nreally"
    assert str(errors.UsageError("naïve 東京 🙂")) == "naïve 東京 🙂"
