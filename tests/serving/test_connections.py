"""Ending another process's idle connections: idle ones end, busy ones are answered first."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from polyhead_serving.connections import block_new_connections, client_states, close_idle_connections
from tests.kernel import lets_reach_into_processes

SERVER = """
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(float(self.path[1:]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """Pid and port of a server that answers after the seconds in the path."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.pid, int(process.stdout.readline())
    process.kill()
    process.stdout.close()
    process.wait()


def test_idle_connections_end_and_busy_ones_are_answered(server: tuple[int, int]) -> None:
    """An idle connection is closed; a busy one is closed after its answer."""
    pid, port = server
    if not lets_reach_into_processes():
        assert close_idle_connections(pid, port) == 0
        return
    idle, unused, first, second = (http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(4))
    for connection in (idle, second):
        connection.request("GET", "/0")
        assert connection.getresponse().read() == b"ok"
    unused.connect()
    time.sleep(0.1)
    for connection in (first, second):
        connection.request("GET", "/1.5")
    time.sleep(0.6)
    assert close_idle_connections(pid, port) == 2
    for connection in (idle, unused):
        assert connection.sock.recv(1) == b""
    for connection in (first, second):
        assert connection.getresponse().read() == b"ok"
    time.sleep(0.6)
    close_idle_connections(pid, port)
    for connection in (first, second):
        assert connection.sock.recv(1) == b""
        connection.close()
    idle.close()
    unused.close()


def test_other_ports_and_gone_processes_are_left_alone(server: tuple[int, int]) -> None:
    """Connections of another port stay, and a process that has ended is no error."""
    pid, port = server
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(2):
        connection.request("GET", "/0")
        assert connection.getresponse().read() == b"ok"
        assert close_idle_connections(pid, port + 1) == 0
    connection.close()
    assert close_idle_connections(2**22 + 1, port) == 0


def test_clients_are_seen_until_they_leave(server: tuple[int, int]) -> None:
    """A connection counts from its beginning to its end, and only on the given ports."""
    pid, port = server
    assert not client_states(pid, port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    assert client_states(pid, port + 1, port) == {"ESTABLISHED": 1}
    assert not client_states(pid, port + 1)
    connection.close()
    deadline = time.monotonic() + 5
    while client_states(pid, port):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not client_states(2**22 + 1, port)


def test_new_clients_are_kept_out(server: tuple[int, int]) -> None:
    """A new client is blocked; a connected client is still answered."""
    pid, port = server
    if not lets_reach_into_processes():
        assert block_new_connections(pid, port) == 0
        return
    old = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    new = http.client.HTTPConnection("127.0.0.1", port, timeout=0.3)
    old.request("GET", "/0")
    assert old.getresponse().read() == b"ok"
    assert block_new_connections(pid, port) == 1
    with pytest.raises(TimeoutError):
        new.request("GET", "/0")
    old.request("GET", "/0")
    assert old.getresponse().read() == b"ok"
    old.close()
