"""The canary, against a small HTTP server that answers like Triton."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from polyhead_serving.canary import Canary

GOOD = (200, b'{"outputs": [{"name": "SCORES", "data": [0.25, 0.75]}]}')


class FakeServer(ThreadingHTTPServer):
    """Answers inference with `answer` and metrics with a counter of `answered`."""

    daemon_threads = True
    answer = GOOD
    answered = 0
    parts = 0
    delay_s = 0.0


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeServer

    def do_POST(self) -> None:
        """Inference."""
        self.rfile.read(int(self.headers["Content-Length"]))
        threading.Event().wait(self.server.delay_s)
        self._send(*self.server.answer)

    def do_GET(self) -> None:
        """Metrics."""
        lines = 'nv_inference_request_success{model="m2",version="1"} 99\n'
        lines += f'nv_inference_request_success{{model="m",version="1"}} {self.server.answered}\n'
        lines += f'polyhead_parts_total{{model="m",version="1"}} {self.server.parts}\n'
        self._send(200, lines.encode())

    def _send(self, code: int, body: bytes) -> None:
        try:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except BrokenPipeError:
            pass

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running fake."""
    with FakeServer(("127.0.0.1", 0), Handler) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


@pytest.fixture
def canary(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Canary:
    """A canary in an environment whose proxy leads nowhere."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    place = f"127.0.0.1:{server.server_address[1]}"
    return Canary(place, place, ["m"])


def test_finite_scores_are_good(canary: Canary) -> None:
    """An answer with finite numbers is good."""
    assert canary.check(5) is None


@pytest.mark.parametrize(
    ("code", "body", "reason"),
    [
        (500, b'{"error": "Stub process is not healthy"}', "not healthy"),
        (200, b'{"outputs": [{"name": "SCORES", "data": [NaN]}]}', "finite"),
        (200, b"not json", "JSON"),
        (200, b"{}", "outputs"),
    ],
)
def test_bad_answers_are_told(server: FakeServer, canary: Canary, code: int, body: bytes, reason: str) -> None:
    """An error, a NaN or nonsense is a failure that names the model, even while other requests are answered."""
    assert canary.check(5) is None
    server.answered += 1
    server.answer = (code, body)
    wrong = canary.check(5)
    assert wrong is not None
    assert wrong.startswith("m: ")
    assert reason in wrong


def test_no_server_is_told() -> None:
    """A refused connection is a failure, not an exception."""
    assert "refused" in str(Canary("127.0.0.1:9", "127.0.0.1:9", ["m"]).check(1))


@pytest.mark.parametrize(("answer", "delay_s"), [((503, b'{"error": "Request timeout expired"}'), 0.0), (GOOD, 1.0)])
def test_overload_is_not_death(server: FakeServer, canary: Canary, answer: tuple[int, bytes], delay_s: float) -> None:
    """A rejected or late canary counts as answered while other requests are answered, else as failed."""
    assert canary.check(0.3) is None
    server.answer, server.delay_s = answer, delay_s
    server.answered += 5
    assert canary.check(0.3) is None
    assert canary.check(0.3) is not None


def test_a_long_batch_is_not_death(server: FakeServer, canary: Canary) -> None:
    """A late canary counts as answered while parts of a batch are scored, even if no request has been answered."""
    assert canary.check(0.3) is None
    server.delay_s = 1.0
    server.parts += 1
    assert canary.check(0.3) is None
    assert canary.check(0.3) is not None
