"""The fake server behind a real HTTP port of the loopback interface."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

from polyhead_client.http_wire import HttpRequest

if TYPE_CHECKING:
    from polyhead_client.testing.server import FakeServer


@contextmanager
def listen(fake: FakeServer) -> Iterator[str]:
    """Serves while the block runs; gives ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet a response: two would wait for each other (Nagle, delayed ACK)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            failure = fake.next_failure()
            time.sleep(failure.hang_s)
            if failure.broken or failure.refused:
                self.close_connection = True
                return
            reply = fake.reply(HttpRequest(self.command, self.path, dict(self.headers.items()), body), failure)
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
                self.wfile.flush()
            except OSError:
                self.close_connection = True  # the client gave up waiting
            self.close_connection = self.close_connection or not fake.keep_alive

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: a test's output is its own."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Nothing: clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
