"""The canary, against a small HTTP server that answers like Triton."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from polyhead_serving.canary import Canary

REFUSAL = (503, b'{"error": "the queue is full; retry in 2.4 s"}')
GOOD = (200, b'{"outputs": [{"name": "SCORES", "data": [0.25, 0.75]}]}')


class FakeServer(ThreadingHTTPServer):
    """Answers inference with `answer` and metrics with a counter of `answered`."""

    daemon_threads = True
    answer = GOOD
    answered = 0
    last: Any = None
    micro_batches = 0
    tokenized = 0
    waiting = 0
    delay_s = 0.0

    def count_micro_batch_later(self, seconds: float) -> None:
        """Finishes one micro-batch after this time."""

        def finish() -> None:
            self.micro_batches += 1

        threading.Timer(seconds, finish).start()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeServer

    def do_POST(self) -> None:
        """Inference."""
        self.server.last = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        threading.Event().wait(self.server.delay_s)
        self._send(*self.server.answer)

    def do_GET(self) -> None:
        """Metrics."""
        lines = 'nv_inference_request_success{model="m2",version="1"} 99\n'
        lines += f'nv_inference_request_success{{model="m",version="1"}} {self.server.answered}\n'
        lines += f'polyhead_waiting_texts{{model="m",version="1"}} {self.server.waiting}\n'
        if self.server.micro_batches:
            lines += f'polyhead_micro_batches_total{{model="m",version="1"}} {self.server.micro_batches}\n'
        lines += f'polyhead_progress_total{{model="m",stage="tokenize",version="1"}} {self.server.tokenized}\n'
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


def test_a_canary_ends_with_its_timeout(server: FakeServer, canary: Canary) -> None:
    """The request carries the canary's own timeout, so that the model drops it when nobody waits for it."""
    assert canary.check(5) is None
    assert server.last["parameters"] == {"timeout": 5_000_000}
    assert server.last["id"] == "polyhead-probe"  # the answer log leaves it out


@pytest.mark.parametrize(("answer", "delay_s"), [(REFUSAL, 0.0), (GOOD, 1.0)])
def test_overload_is_not_death(server: FakeServer, canary: Canary, answer: tuple[int, bytes], delay_s: float) -> None:
    """A refused or late canary counts as answered while other requests are answered, else as failed."""
    assert canary.check(0.3) is None
    server.answer, server.delay_s = answer, delay_s
    server.answered += 5
    assert canary.check(0.3) is None
    assert canary.check(0.3) is not None


@pytest.mark.parametrize(("answer", "delay_s"), [(REFUSAL, 0.0), (GOOD, 1.0)])
def test_a_long_micro_batch_is_not_death(
    server: FakeServer, canary: Canary, answer: tuple[int, bytes], delay_s: float
) -> None:
    """A refused or late canary counts as answered if a micro-batch ends before the timeout, even with a full queue."""
    server.micro_batches, server.waiting = 1, 64
    assert canary.check(0.8) is None
    server.answer, server.delay_s = answer, delay_s
    server.count_micro_batch_later(0.4)
    assert canary.check(0.8) is None
    assert canary.check(0.3) is not None


def test_a_refusal_is_judged_after_the_whole_timeout(server: FakeServer, canary: Canary) -> None:
    """Refusals come at once, but three of them in a row last as long as three timeouts."""
    assert canary.check(0.3) is None
    server.answer = REFUSAL
    began = time.monotonic()
    assert "queue is full" in str(canary.check(0.5))
    assert time.monotonic() - began >= 0.5


def test_long_tokenizing_is_not_death(server: FakeServer, canary: Canary) -> None:
    """A late canary counts as answered while texts are tokenized and none waits."""
    server.micro_batches = 1
    assert canary.check(0.3) is None
    server.delay_s = 1.0
    server.tokenized += 1
    assert canary.check(0.3) is None


def test_a_hung_scheduler_is_death(server: FakeServer, canary: Canary) -> None:
    """If texts wait and none is computed, neither refusals, tokenizing nor answers about the schema are progress."""
    server.micro_batches, server.waiting = 1, 64
    assert canary.check(0.3) is None
    server.answer = REFUSAL
    server.tokenized += 1
    server.answered += 1
    assert "queue is full" in str(canary.check(0.3))


def test_metrics_that_cannot_be_read_are_no_progress(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without metrics, a refused canary has failed."""
    monkeypatch.setenv("no_proxy", "*")
    server.answer = REFUSAL
    canary = Canary(f"127.0.0.1:{server.server_address[1]}", "127.0.0.1:9", ["m"])
    assert canary.check(0.1) is not None
    assert canary.check(0.1) is not None
