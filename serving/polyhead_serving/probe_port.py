"""The port at which probes, Prometheus and the proxy ask the supervisor: /live, /ready, /metrics and POST /blame."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from polyhead_serving.caller_fault import find_fault
from polyhead_serving.health import Health

LARGEST_JSON = 2**20  # bytes of a body that are looked at; the proxy lets less JSON through


class _Handler(BaseHTTPRequestHandler):
    timeout = 5  # seconds in which a request must have come

    server: _Server

    def do_GET(self) -> None:
        """Answers one probe."""
        match self.path.partition("?")[0]:
            case "/live":
                self._send(HTTPStatus.OK, "live\n")
            case "/ready":
                wrong = self.server.health.not_ready
                self._send(HTTPStatus.OK if wrong is None else HTTPStatus.SERVICE_UNAVAILABLE, f"{wrong or 'ready'}\n")
            case "/metrics":
                self._send(HTTPStatus.OK, self.server.health.metrics(), "text/plain; version=0.0.4; charset=utf-8")
            case _:
                self._send(HTTPStatus.NOT_FOUND, "there are /live, /ready and /metrics\n")

    def do_POST(self) -> None:
        """Tells a proxy what a request that got 500 should get: 400 and why, 503 to come again, or 500 indeed."""
        header_length = self.headers.get("Inference-Header-Content-Length") or None
        size = self.headers.get("Content-Length", "")
        if self.path != "/blame" or not size.isdecimal():
            self._send(HTTPStatus.NOT_FOUND, "there is POST /blame, with a length\n")
            return
        status, error = HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed to answer; see its log"
        beginning = self.rfile.read(min(int(size), LARGEST_JSON))
        left = int(size) - len(beginning)
        while left > 0 and (chunk := self.rfile.read(min(left, LARGEST_JSON))):
            left -= len(chunk)  # what is not read would break the connection under the answer
        if fault := find_fault(beginning, header_length):
            status, error = HTTPStatus.BAD_REQUEST, fault
        elif self.server.health.may_come_again():
            status, error = HTTPStatus.SERVICE_UNAVAILABLE, "the server is being restarted; come again later"
        self._send(status, json.dumps({"error": error}), "application/json")

    do_HEAD = do_GET  # noqa: N815 # the name that http.server looks for

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Probes come every second: nothing is logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, place: tuple[str, int], health: Health) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self.health = health
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        """Without the parent's look-up of its own name, which may ask a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, *_: object) -> None:
        """A probe that hung up is no event."""


@contextmanager
def probe_port(health: Health, address: str, port: int) -> Iterator[None]:
    """Answers there for as long as the block runs."""
    with _Server((address, port), health) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
