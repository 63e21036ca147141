"""A fake server behind the proxy, for tests that need no model: it answers at once, or when it is told to."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def prediction(text: bytes) -> bytes:
    """Triton's answer with one PREDICTION and a SCHEMA, as binary data."""
    rows = {"PREDICTION": text, "SCHEMA": b'{"fields": ["a"]}'}
    outputs = [
        {"name": name, "parameters": {"binary_data_size": 4 + len(row)}, "datatype": "BYTES", "shape": [1, 1]}
        for name, row in rows.items()
    ]
    return json.dumps({"outputs": outputs}).encode() + b"".join(
        struct.pack("<I", len(row)) + row for row in rows.values()
    )


OK = prediction(b"{}")


class Upstream(ThreadingHTTPServer):
    """Answers every request alike.

    Args:
        answer: the body of each answer.

    Attributes:
        bodies, paths, headers: what came, per request.
        busy, busiest: requests that wait for their answer now, and the most that ever did.
        go: answers are sent while it is set.
    """

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, answer: bytes = OK) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answer = answer
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.busiest = 0
        self.go = threading.Event()
        self.go.set()
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A caller that has left is no error here."""

    @property
    def place(self) -> str:
        """Its address and port."""
        return f"127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Upstream

    def do_POST(self) -> None:
        """Answers when the server may."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.paths.append(self.path)
            self.server.headers.append(dict(self.headers.items()))
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        self.server.go.wait(60)
        with self.server.lock:
            self.server.busy -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.send_header("Inference-Header-Content-Length", str(self.server.answer.find(b"}]}") + 3))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def do_GET(self) -> None:
        """The same for a probe."""
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@contextmanager
def upstream(answer: bytes = OK) -> Iterator[Upstream]:
    """A fake server that runs."""
    with Upstream(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.go.set()
            server.shutdown()
            thread.join()
