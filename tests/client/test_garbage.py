"""Damaged answers: each gives a prediction or an error of the tree."""

from __future__ import annotations

import contextlib
import json

from hypothesis import example, given
from hypothesis import strategies as st

from polyhead_client import PolyheadClientError, RetryPolicy
from polyhead_client.replicas import Replica
from polyhead_client.request import HEADER_LENGTH, Deadline, HttpReply, HttpRequest
from polyhead_client.testing import Failure, FakeServer
from tests.client.fake_triton import fake_server

FAKE = fake_server()
ASKS = ("classify", "scores", "schema", "is_ready")


class Wire:
    """Replies as the test says."""

    def __init__(self, change: object) -> None:
        self.change = change

    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """The fake's reply, changed."""
        return self.change(FAKE.reply(request, Failure()))  # type: ignore[operator, no-any-return]

    def close(self) -> None:
        """Nothing is open."""


def ask(name: str, change: object) -> None:
    """Makes one call and ignores errors of the tree."""
    with FakeServer().client(retry=RetryPolicy(max_attempts=1)) as client:
        client._transport = Wire(change)
        with contextlib.suppress(PolyheadClientError):
            method = getattr(client, name)
            method(["a", "b"]) if name in ("classify", "scores") else method()


@given(st.sampled_from(ASKS), st.binary(max_size=60), st.one_of(st.none(), st.text(max_size=5)), st.integers(100, 599))
def test_any_bytes(name: str, body: bytes, length: str | None, status: int) -> None:
    """Random body, header length and status."""
    headers = {} if length is None else {HEADER_LENGTH.lower(): length}
    ask(name, lambda reply: HttpReply(200, headers, body))
    ask(name, lambda reply: HttpReply(status, {"retry-after": length or ""}, body))


@given(st.sampled_from(ASKS), st.integers(0, 400), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_damaged_answer(name: str, place: int, junk: bytes, cut: bool) -> None:
    """A real answer with some bytes overwritten, or cut off."""

    def damage(reply: HttpReply) -> HttpReply:
        body = reply.body[:place] + (b"" if cut else junk + reply.body[place + len(junk) :])
        return HttpReply(200, reply.headers, body)

    ask(name, damage)


@given(st.sampled_from(ASKS), st.sampled_from(["shape", "datatype", "name", "parameters", "data"]), st.data())
@example("classify", "shape", None)
def test_a_damaged_field(name: str, field: str, data: st.DataObject | None) -> None:
    """A real answer in which one field of an output has another type or size."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
    )
    value = (
        [10**30, 1] if data is None else data.draw(values | st.dictionaries(st.text(max_size=3), values, max_size=2))
    )

    def damage(reply: HttpReply) -> HttpReply:
        length = reply.headers.get(HEADER_LENGTH.lower())
        if length is None:
            return reply
        head = json.loads(reply.body[: int(length)])
        head["outputs"][0][field] = value
        changed = json.dumps(head).encode()
        return HttpReply(200, {HEADER_LENGTH.lower(): str(len(changed))}, changed + reply.body[int(length) :])

    ask(name, damage)
