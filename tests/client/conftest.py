"""Fake servers, and both kinds of client, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from polyhead_client.testing import FakeServer
from tests.client.fake_triton import FakeTriton, fake_server, serve_fake
from tests.client.surface import Ask, blocking


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    """A new fake server behind a port."""
    with serve_fake() as server:
        yield server


@pytest.fixture
def server() -> FakeServer:
    """A new fake server that replaces the network."""
    return fake_server()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Makes a client of each kind, blocking and asynchronous."""
    return partial(blocking, request.param)
