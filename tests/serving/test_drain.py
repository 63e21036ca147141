"""The drain: what the end of a server waits for. A small server takes tritonserver's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead_serving import server_process
from polyhead_serving.server_process import MODEL_PROCESS, ServerProcess
from polyhead_serving.triton import TritonInstall
from tests.serving.options import parse

# It accepts connections, never answers or closes one, ignores SIGTERM, and has a child with a model process's name.
STUCK_SERVER = """
import signal, socket, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.argv[1], "60"])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
accepted = []
while True:
    accepted.append(listener.accept())
"""


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[tuple[ServerProcess, int]]:
    """A server that never ends by itself, and its port."""
    model_process = tmp_path / MODEL_PROCESS
    model_process.symlink_to("/bin/sleep")
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK_SERVER, str(model_process)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    options = parse("--http-port", str(port), "--grpc-port", str(port), "--exit-timeout-s", "0.1")
    server = ServerProcess(options, TritonInstall(Path(sys.executable)), f"polyhead_test_{os.getpid()}", None)
    server._process = process
    yield server, port
    server.kill()
    process.stdout.close()


def test_clients_that_have_left_do_not_delay_the_end(
    stuck: tuple[ServerProcess, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that the client has closed and the server never closes holds up the drain for a while only."""
    server, port = stuck
    monkeypatch.setattr(server_process, "HALF_CLOSED_S", 0.5)
    socket.create_connection(("127.0.0.1", port)).close()
    began = time.monotonic()
    assert server.drain()
    assert 0.5 < time.monotonic() - began < 5


def test_a_connected_client_is_waited_for(stuck: tuple[ServerProcess, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for its answer is waited for until the exit timeout, and then counts as lost."""
    server, port = stuck
    monkeypatch.setattr(server_process, "HALF_CLOSED_S", 0.5)
    with socket.create_connection(("127.0.0.1", port)) as waiting:
        waiting.sendall(b"a request")
        assert not server.drain()
