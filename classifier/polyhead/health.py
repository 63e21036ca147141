"""What the supervisor knows of its server, and the port at which probes and Prometheus ask for it.

Triton's own health endpoints stay good over a dead model process, and say nothing of a drain.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

RestartReason = Literal["exit", "canary", "model_process"]
REASONS: tuple[RestartReason, ...] = ("exit", "canary", "model_process")


class Health:
    """The supervisor's state; written by the supervisor, read by probes in threads of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: str | None = "starting"
        self._draining = False
        self._canary_s = 0.0
        self._canary_failures = 0
        self._restarts: Counter[RestartReason] = Counter()

    @property
    def not_ready(self) -> str | None:
        """Why no traffic should come, or None."""
        with self._lock:
            return "draining" if self._draining else self._wrong

    def canary(self, wrong: str | None, seconds: float) -> None:
        """Takes what a canary of the running server said, and how long it took."""
        with self._lock:
            self._wrong = wrong
            self._canary_s = seconds
            self._canary_failures += wrong is not None

    def restarting(self, reason: RestartReason, wrong: str) -> None:
        """Counts a restart; not ready until the next canary is answered."""
        with self._lock:
            self._restarts[reason] += 1
            self._wrong = f"restarting: {wrong}"

    def drain(self) -> None:
        """Not ready any more, whatever canaries say."""
        with self._lock:
            self._draining = True

    def metrics(self) -> str:
        """The same in Prometheus' text format."""
        with self._lock:
            lines = [
                "# HELP polyhead_ready Whether the last canary was answered and no drain is on",
                "# TYPE polyhead_ready gauge",
                f"polyhead_ready {int(self._wrong is None and not self._draining)}",
                "# HELP polyhead_canary_seconds Seconds that the last canary took",
                "# TYPE polyhead_canary_seconds gauge",
                f"polyhead_canary_seconds {self._canary_s:.6f}",
                "# HELP polyhead_canary_failures_total Canaries of a started server that were not answered",
                "# TYPE polyhead_canary_failures_total counter",
                f"polyhead_canary_failures_total {self._canary_failures}",
                "# HELP polyhead_restarts_total Restarts of the whole server, by what led to them",
                "# TYPE polyhead_restarts_total counter",
                *(f'polyhead_restarts_total{{reason="{reason}"}} {self._restarts[reason]}' for reason in REASONS),
            ]
        return "".join(f"{line}\n" for line in lines)


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

    do_HEAD = do_GET  # noqa: N815 # the name that http.server looks for

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
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
    """Answers /live, /ready and /metrics there for as long as the block runs."""

    with _Server((address, port), health) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
