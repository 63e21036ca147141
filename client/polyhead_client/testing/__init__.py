"""A fake server for your own tests. It answers by text, records its requests, and fails on demand.

    fake = FakeServer(answer={"a goal": {"topic": "sport", "mood": ["happy"], "stars": 4.5}})
    with fake.client() as client:
        assert client.classify("a goal")["topic"].label == "sport"

It replaces the network only, so everything above is the client's real code. `FakeServer.serve` puts it behind a real
HTTP port, for programs that are given an address.
"""

from __future__ import annotations

from polyhead_client.testing.server import Asked, Failure, FakeServer

__all__ = ["Asked", "Failure", "FakeServer"]
