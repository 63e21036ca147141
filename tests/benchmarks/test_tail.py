"""The benchmark of the tail on a tiny model and on fakes; what it measures is committed, not tested."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import tail
from benchmarks.raw_load import Driver
from benchmarks.tail import burst_texts, summarize, summarize_overload
from tests.tiny import TEXTS, tiny_tokenizer, write_tiny_checkpoint

EXPIRED = b'{"error": "the request\'s time ended in the queue after 1.0 s; retry in 0.1 s"}'


class FakeHandler(http.server.BaseHTTPRequestHandler):
    """Answers every text; 503 for the texts ``refuse`` and ``expire``."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, object]]

    def do_POST(self) -> None:
        """One request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(json.loads(body))
        answer = EXPIRED if b"expire" in body else b"{}"
        self.send_response(503 if b"expire" in body or b"refuse" in body else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def fake() -> Iterator[tuple[int, list[dict[str, object]]]]:
    """A server's port and the bodies that it has seen."""
    handler = type("Handler", (FakeHandler,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], handler.seen
        server.shutdown()
        thread.join()


def test_every_counted_request_of_a_closed_loop_has_a_latency(fake: tuple[int, list[dict[str, object]]]) -> None:
    """All sent requests are answered at the end, and those of the first second are not counted."""
    port, seen = fake
    result = summarize(Driver(["a", "b"]).closed(port, clients=3, seconds=0.2))
    assert 0 < result["requests"] < len(seen)
    assert result["failed"] == result["slow"] == 0
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["p999_ms"] <= result["max_ms"]
    assert result["sender_cores"] > 0


def test_a_failed_request_is_a_slow_one(fake: tuple[int, list[dict[str, object]]]) -> None:
    """A quick error must not look like a quick answer."""
    result = summarize(Driver(["a", "refuse"]).closed(fake[0], clients=1, seconds=0.2))
    assert result["slow_share"] == pytest.approx(0.5, abs=0.1)


def test_late_sending_counts_as_latency() -> None:
    """The latency of open arrivals begins when a request was due, whatever kept the sender busy."""
    found = {"seconds": 1, "latencies_s": [0.1], "lags_s": [0.3], "statuses": [200], "core_share": 1.0}
    assert summarize(found)["slow"] == 1


def test_open_arrivals_bring_their_deadline(fake: tuple[int, list[dict[str, object]]]) -> None:
    """Refusals, and requests that were accepted in vain, are told apart."""
    port, seen = fake
    found = Driver(["a", "refuse", "expire"]).open(port, rate=60, seconds=1, timeout_s=0.5)
    result = summarize_overload(found, 0.5)
    assert seen[0]["parameters"] == {"timeout": 500_000}
    assert result["answered"] > 0
    assert result["refused"] > 0
    assert result["missed_deadline"] >= result["expired"] > 0
    assert result["failed"] == 0


def test_a_burst_sends_each_text_once(fake: tuple[int, list[dict[str, object]]]) -> None:
    """The last text is the long one; it is sent only if asked for, and its latency is apart."""
    port, seen = fake
    driver = Driver(["a", "b", "long"])
    assert len(driver.burst(port, clients=2, long=False)["latencies_s"]) == 2
    assert len(seen) == 2
    assert driver.burst(port, clients=2, long=True)["long_s"] > 0
    assert len(seen) == 5


def test_burst_texts_have_exactly_their_tokens() -> None:
    """The short ones have 16 tokens each, and the last one has more than 1,024."""
    texts = [f"{TEXTS[number % len(TEXTS)]} {number}" for number in range(200)]
    *short, long = burst_texts(texts, tiny_tokenizer())
    assert {len(tiny_tokenizer().encode(text).ids) for text in short} == {16}
    assert len(set(short)) == 63
    assert len(tiny_tokenizer().encode(long).ids) > 1024


def test_benchmark_to_its_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both variants, the overload and the bursts run on real servers, and the file has every point."""
    write_tiny_checkpoint(tmp_path / "checkpoint")
    rows = "".join(json.dumps({"text": f"{TEXTS[place % len(TEXTS)]} {place}"}) + "\n" for place in range(200))
    (tmp_path / "test.jsonl").write_text(rows, encoding="utf-8")
    out = tmp_path / "out.json"
    tail.main([
        "--checkpoint", str(tmp_path / "checkpoint"), "--data", str(tmp_path / "test.jsonl"), "--out", str(out),
        "--seconds", "0.3", "--clients", "1", "64", "--variants", "own", "synchronous", "--slices", "1",
        "--slice-s", "0.3", "--pairs", "1", "--layers", "1", "--channels", "64",
        "--small-s", "0.3",
    ])  # fmt: skip
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"slow_share", "p999_over_p50", "short_beside_long", "refusal_ms", "texts_s_64"} < set(summary)
    assert summary["texts_s_64"] > 0
    assert summary["over_synchronous"] > 0
    written = json.loads(out.read_text(encoding="utf-8"))
    for variant in ("own", "synchronous"):
        assert [point["clients"] for point in written["points"][variant]["closed"]] == [1, 64]
        assert written["points"][variant]["half"]["failed"] == 0
    assert written["overload"]["failed"] == 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
