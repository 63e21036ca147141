"""The supervisor's health, and the probe port that tells it: /live, /ready, /metrics, and /failure for the proxy."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args

from polyhead_serving.ports import AddressError

MAX_CONNECTIONS = 100  # to the probe port; one probe takes a millisecond

RestartReason = Literal["exit", "canary", "model_process"]


class Health:
    """What the supervisor knows of its server. Only the supervisor's thread writes; probes read in other threads.

    Args:
        is_broken: whether the server has lost a process that the supervisor may not have noticed yet.
    """

    def __init__(self, is_broken: Callable[[], bool] = lambda: False) -> None:
        self._is_broken = is_broken
        self._wrong: str | None = "starting"
        self._draining = False
        self._canary_s = 0.0
        self._canary_failures = 0
        self._restarts: dict[RestartReason, int] = dict.fromkeys(get_args(RestartReason), 0)

    @property
    def not_ready(self) -> str | None:
        """Why the server should get no traffic, or None if it should."""
        return "draining" if self._draining else self._wrong

    def is_restarting(self) -> bool:
        """Whether the server is being restarted or is about to be, so that a request that failed may be repeated."""
        return self.not_ready is not None or self._is_broken()

    def canary(self, wrong: str | None, seconds: float) -> None:
        """Records the result of a canary of a started server, and how long it took."""
        self._wrong = wrong
        self._canary_s = seconds
        self._canary_failures += wrong is not None

    def restarting(self, reason: RestartReason, wrong: str) -> None:
        """Counts a restart. The server is not ready until the next canary is answered."""
        self._restarts[reason] += 1
        self._wrong = f"restarting: {wrong}"

    def drain(self) -> None:
        """From now on the server is not ready, whatever the canary says."""
        self._draining = True

    def metrics(self) -> str:
        """The same in Prometheus' text format."""
        lines = [
            "# HELP polyhead_ready Whether the last canary was answered and the server is not draining",
            "# TYPE polyhead_ready gauge",
            f"polyhead_ready {int(self.not_ready is None)}",
            "# HELP polyhead_canary_seconds Seconds that the last canary took",
            "# TYPE polyhead_canary_seconds gauge",
            f"polyhead_canary_seconds {self._canary_s:.6f}",
            "# HELP polyhead_canary_failures_total Canaries of a started server that failed",
            "# TYPE polyhead_canary_failures_total counter",
            f"polyhead_canary_failures_total {self._canary_failures}",
            "# HELP polyhead_restarts_total Restarts of the whole server, by reason",
            "# TYPE polyhead_restarts_total counter",
            *(f'polyhead_restarts_total{{reason="{reason}"}} {count}' for reason, count in self._restarts.items()),
        ]
        return "".join(f"{line}\n" for line in lines)


class _Handler(BaseHTTPRequestHandler):
    timeout = 5  # seconds in which a request must arrive

    server: _Server

    def do_GET(self) -> None:
        """Answers one probe."""
        health = self.server.health
        match self.path.partition("?")[0]:
            case "/live":
                self._send(HTTPStatus.OK, "live\n")
            case "/ready":
                wrong = health.not_ready
                self._send(HTTPStatus.OK if wrong is None else HTTPStatus.SERVICE_UNAVAILABLE, f"{wrong or 'ready'}\n")
            case "/metrics":
                self._send(HTTPStatus.OK, health.metrics(), "text/plain; version=0.0.4; charset=utf-8")
            case "/failure":  # the proxy asks what a request should get that Triton answered with 500
                status, error = HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed to answer; see its log"
                if health.is_restarting():
                    status, error = HTTPStatus.SERVICE_UNAVAILABLE, "the server is restarting; try again later"
                self._send(status, json.dumps({"error": error}), "application/json")
            case _:
                self._send(HTTPStatus.NOT_FOUND, "try /live, /ready, /metrics or /failure\n")

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
        """Logs nothing, because probes come every second."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS  # a probe beyond the default of 5 would wait for a second

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.health = health
        self._open: dict[socket.socket, None] = {}  # in the order in which they came
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Binds without looking up the host's own name, which may block on a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Ends the oldest connection if there are too many. Whoever holds connections open keeps no probe out, and uses
        up no file that the canary needs.
        """
        self._open[request] = None
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            self._open.pop(oldest, None)
            with suppress(OSError):  # it has just ended
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Ignores a probe that hung up."""


@contextmanager
def probe_port(health: Health, address: str, port: int) -> Iterator[None]:
    """Answers probes at this address while the block runs."""
    try:
        server = _Server((address, port), health)
    except OSError as error:
        raise AddressError(f"--probe-port {port}: cannot listen on {address}:{port} ({error.strerror})") from error
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
