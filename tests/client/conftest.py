"""The fake server as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.fake_triton import FakeTriton, serve_fake


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    """A fresh fake Triton."""
    with serve_fake() as server:
        yield server
