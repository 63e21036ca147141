"""A Ray cluster of several nodes on this machine, one for all tests: each start costs seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import psutil
import pytest
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}


@pytest.fixture(scope="session")
def client_port() -> int:
    """Where Ray's client is answered, as in ``ray://localhost:PORT``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def cluster(client_port: int) -> Iterator[Cluster]:
    """A head and a worker, of one CPU each; afterwards no process of theirs is left."""
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
