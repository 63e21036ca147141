"""A fake server, the command, and one Ray cluster of several nodes for all tests, because each start costs seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from polyhead_client.testing import FakeServer
from polyhead_scoring.command import app

NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}


@dataclass
class Served:
    """A fake server behind a port."""

    server: FakeServer
    url: str

    @property
    def texts(self) -> list[str]:
        """All texts that it was asked for an answer, except canaries."""
        return [text for asked in self.server.requests if asked.outputs == ["PREDICTION"] for text in asked.texts]


@pytest.fixture
def fake() -> Iterator[Served]:
    """A server whose answers are known by their text: ``stars`` is the number at the text's end."""
    server = FakeServer(answer=known_answer, max_length=48)
    with server.serve() as url:
        yield Served(server, url)


def known_answer(text: str) -> dict[str, Any]:
    """What the fake says of a text."""
    last = text.split()[-1] if text.split() else ""
    return {"topic": "sport", "mood": ["happy"], "stars": float(last) if last.isdigit() else 0.0}


@pytest.fixture
def score(fake: Served, tmp_path: Path) -> Callable[..., Any]:
    """Runs ``polyhead-score DATA --output OUT --server …`` in a folder."""

    def invoke(data: str, output: str, *options: str) -> Any:
        names = [str(tmp_path / data), "--output", str(tmp_path / output), "--server", fake.url]
        return CliRunner().invoke(app, [*names, *options])

    return invoke


@pytest.fixture(scope="session")
def client_port() -> int:
    """Where Ray's client is answered, as in ``ray://localhost:PORT``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def cluster(client_port: int) -> Iterator[Any]:
    """A head and a worker, of one CPU each; afterwards no process of theirs is left."""
    from ray.cluster_utils import Cluster  # imports Ray, which takes seconds

    os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "120"  # for machines that are busy
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"ray_client_server_port": client_port})
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        cluster.shutdown()
        del os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"]
        _, alive = psutil.wait_procs(started, timeout=20)
        for process in alive:
            process.kill()
    assert not alive
