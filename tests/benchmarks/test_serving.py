"""The serving benchmark's parts on tiny models; the peers' servers live in an environment that tests do not need."""

from __future__ import annotations

import argparse
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2ForSequenceClassification

from benchmarks import serving
from benchmarks.load import Load, analyze, drive, json_sender, median_load, passes_of, requests_of
from benchmarks.peers.servers import PeerServer
from benchmarks.workload import add_shape, write_checkpoints
from polyhead.predictor import Predictor
from tests.tiny import TEXTS

SHAPE = ["--layers", "2", "--channels", "64", "--vocabulary", "500", "--labels", "5", "--max-length", "32"]


class EchoHandler(http.server.BaseHTTPRequestHandler):
    """Answers with the body it got, and with 500 where that says so."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, list[str]]]

    def do_POST(self) -> None:
        """One request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(json.loads(body))
        self.send_response(500 if b"fail" in body else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def echo() -> Iterator[tuple[int, list[dict[str, list[str]]]]]:
    """A server's port and the bodies that it has seen."""
    handler = type("Handler", (EchoHandler,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], handler.seen
        server.shutdown()
        thread.join()


def test_load_sends_every_text_once_a_pass(echo: tuple[int, list[dict[str, list[str]]]]) -> None:
    """Two clients share the requests; texts are counted, and each goes as often as there are passes."""
    port, seen = echo
    requests = requests_of(["a", "b", "c", "d", "e"], texts_a_request=2, passes=3)
    load = drive(json_sender(port, "/", lambda texts: {"texts": texts}), requests, clients=2)
    assert sorted(text for body in seen for text in body["texts"]) == sorted("abcde" * 3)
    assert load.requests == 9
    assert load.texts_s == pytest.approx(15 / load.seconds, rel=0.5)
    assert 0 < load.p50_ms <= load.p95_ms <= load.p99_ms


def test_a_refused_request_ends_the_load(echo: tuple[int, list[dict[str, list[str]]]]) -> None:
    """A server that answers with errors must not look fast."""
    with pytest.raises(RuntimeError, match="500"):
        drive(json_sender(echo[0], "/", lambda texts: {"texts": texts}), [["fine"], ["fail"]], clients=1)


def test_median_load_keeps_all_throughputs() -> None:
    """The middle load stands for the repeats, which are listed beside it."""
    loads = [Load(rate, 1, 2, 3, 10, 1.0) for rate in (30.0, 10.0, 20.0)]
    assert median_load(loads)["texts_s"] == 20.0
    assert median_load(loads)["texts_s_all"] == [30.0, 10.0, 20.0]
    assert passes_of(["text"] * 10, texts_s=100, window_s=0.5) == 5
    assert passes_of(["text"] * 10, texts_s=1, window_s=0.5) == 1


def test_both_checkpoints_hold_one_model(tmp_path: Path) -> None:
    """What peers serve gives the probabilities that we serve, so their speeds are of the same work."""
    parser = argparse.ArgumentParser()
    add_shape(parser)
    write_checkpoints(parser.parse_args(SHAPE), TEXTS, tmp_path / "ours", tmp_path / "theirs")
    predictor = Predictor.load(tmp_path / "ours")
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    inputs = tokenizer(TEXTS[:4], padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs).logits.softmax(-1).numpy()
    ours = predictor.score(predictor.encode(TEXTS[:4]))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len({tuple(row) for row in ours.round(6).tolist()}) == 4


def test_perf_analyzer_is_read_from_its_record(tmp_path: Path) -> None:
    """Throughput is texts from the first request sent to the last one answered, whatever bytes the record repeats."""
    requests = [
        {"timestamp": start, "request_inputs": {"TEXT": "?"}, "response_timestamps": [end]}
        for start, end in ((10**9, 11 * 10**8), (11 * 10**8, 13 * 10**8))
    ]
    record = json.dumps({"experiments": [{"requests": requests}]}).encode().replace(b"?", b"\xfc\x01")
    (tmp_path / "made.json").write_bytes(record)
    binary = tmp_path / "perf_analyzer"
    # The record's path is the last argument; the number of requests stands before --profile-export-file.
    binary.write_text(
        f"#!/bin/sh\nfor last; do :; done\necho $* > {tmp_path}/arguments\ncat {tmp_path}/made.json > $last\n"
        f"tr '\\0' ' ' < /proc/$$/cmdline > {tmp_path}/shown\n",
        encoding="utf-8",
    )
    binary.chmod(0o755)
    load = analyze(binary, "127.0.0.1:1", "key", ["a", "b", "c", "d"], texts_a_request=4, clients=1, passes=2)
    assert (load.texts_s, load.requests, load.seconds) == (26.67, 2, 0.3)
    assert load.p50_ms == 150
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8")
    assert "--request-count 2 " in arguments
    assert "polyhead-admin-key:key" in arguments
    shown = (tmp_path / "shown").read_text(encoding="utf-8")  # what every user of the machine can read
    assert "polyhead-admin-key:hidden" in shown
    assert "polyhead-admin-key:key" not in shown


def test_a_failing_perf_analyzer_shows_its_words(tmp_path: Path) -> None:
    """No record, no figure."""
    binary = tmp_path / "perf_analyzer"
    binary.write_text("#!/bin/sh\necho 'Request timeout expired' >&2\nexit 1\n", encoding="utf-8")
    binary.chmod(0o755)
    with pytest.raises(RuntimeError, match="Request timeout expired"):
        analyze(binary, "127.0.0.1:1", "key", ["a"], texts_a_request=1, clients=1, passes=1)


def test_a_peer_that_ends_says_why(tmp_path: Path) -> None:
    """The error shows the peer's own output."""
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit('no such model')", encoding="utf-8")
    python = Path(".venv/bin/python").resolve()
    peer = PeerServer("broken", python, lambda *_: [str(script)], "/", lambda texts: {"texts": texts}, ((),))
    with pytest.raises(RuntimeError, match="no such model"), peer.serving(tmp_path, "cpu", ()):
        pass


def test_queue_timeout_must_be_there_to_be_lifted(tmp_path: Path) -> None:
    """A config without the expected timeout is refused, because its server would shed load unnoticed."""
    config = tmp_path / "config.pbtxt"
    config.write_text('{ key: "default_timeout_s" value { string_value: "10" } }', encoding="utf-8")
    serving._raise_queue_timeout(config)
    assert config.read_text(encoding="utf-8") == '{ key: "default_timeout_s" value { string_value: "600" } }'
    config.write_text('{ key: "queue_texts" value { string_value: "5" } }', encoding="utf-8")
    with pytest.raises(SystemExit):
        serving._raise_queue_timeout(config)


def test_serving_measures_the_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engine and tritonserver end in one line of ratios; the file has every point, the plot is beside it."""
    data, out = tmp_path / "test.jsonl", tmp_path / "serving.json"
    lines = [json.dumps({"text": f"{TEXTS[number % len(TEXTS)]} {number}"}) + "\n" for number in range(64)]
    data.write_text("".join(lines), encoding="utf-8")
    serving.main(
        ["--data", str(data), "--out", str(out), "--texts", "16", "--latency-texts", "4", "--window-s", "0.1",
         "--repeats", "1", "--latency-repeats", "1", "--clients", "1", "4", "--texts-a-request", "1", "32",
         "--loads", "client", "--peers", *SHAPE]
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["server_over_engine"] > 0
    assert summary["startup_s"] > 0
    points = json.loads(out.read_text(encoding="utf-8"))["product"]["points"]
    assert [(point["texts_a_request"], point["clients"]) for point in points] == [(1, 1), (1, 4), (32, 1), (32, 4)]
    assert all(point.get("texts_s", 0) > 0 for point in points[:3])
    assert "left_out" in points[3]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
