"""A fake server for your own tests: answers by text, counts what it was asked, and fails when told to.

    fake = FakeServer(answer={"a goal": {"topic": "sport", "mood": ["happy"], "stars": 4.5}})
    with fake.client() as client:
        assert client.classify("a goal")["topic"].label == "sport"

It stands where the network would be, so that everything above is the client's real code. `FakeServer.serve` puts it
behind a real HTTP port, for programs that are told an address.
"""

from __future__ import annotations

from polyhead_client.testing.server import Asked, Failure, FakeServer

__all__ = ["Asked", "Failure", "FakeServer"]
