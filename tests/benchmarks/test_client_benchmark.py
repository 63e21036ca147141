"""The client benchmark on a tiny model and on fakes; what it measures is committed, not tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import client
from benchmarks.client_load import WAYS, measure
from tests.client.fake_triton import FakeTriton, serve_fake
from tests.tiny import TEXTS, write_tiny_checkpoint


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    """A server that answers every text alike."""
    with serve_fake() as server:
        yield server


@pytest.mark.parametrize("way", ["stream", "tritonclient"])
def test_ways_send_every_text_once(way: str, fake: FakeTriton) -> None:
    """As many texts are answered as were to be, in batches of the size, after a few that are not counted."""
    result = measure(WAYS[way], fake.url, TEXTS, count=20, batch=8, concurrency=2)
    assert result["texts"] == 20
    assert result["texts_s"] > 0
    assert result["cpu_us_a_text"] > 0
    sizes = [len(request["texts"]) for request in fake.requests]
    assert sorted(sizes) == [4, 8, 8, 8, 8, 8, 8]


def test_a_text_without_an_answer_ends_the_run(fake: FakeTriton) -> None:
    """Errors must not look fast."""
    with pytest.raises(SystemExit, match="no answer"):
        measure(WAYS["stream"], fake.url, [" "], count=4, batch=2, concurrency=1)


def test_benchmark_to_its_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real server, echo model and all ways to send; perf_analyzer is a stand-in whose record lasts one second."""
    write_tiny_checkpoint(tmp_path / "checkpoint")
    rows = "".join(json.dumps({"text": f"{TEXTS[place % len(TEXTS)]} {place}"}) + "\n" for place in range(16))
    (tmp_path / "test.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "scoring.json").write_text('{"score_over_engine": 0.93}', encoding="utf-8")
    times = [{"timestamp": 10**9, "response_timestamps": [2 * 10**9]}] * 4
    (tmp_path / "record.json").write_text(json.dumps({"experiments": [{"requests": times}]}), encoding="utf-8")
    binary = tmp_path / "perf_analyzer"
    binary.write_text(f"#!/bin/sh\nfor last; do :; done\ncat {tmp_path}/record.json > $last\n", encoding="utf-8")
    binary.chmod(0o755)
    client.main([
        "--checkpoint", str(tmp_path / "checkpoint"), "--data", str(tmp_path / "test.jsonl"),
        "--out", str(tmp_path / "out.json"), "--perf-analyzer", str(binary),
        "--scoring", str(tmp_path / "scoring.json"), "--batch-size", "4", "--concurrency", "2",
        "--repeats", "1", "--window-s", "0", "--echo-texts", "200",
        "--memory-texts", "20000",
    ])  # fmt: skip
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["score_over_engine"] == 0.93
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["served"]["texts_s"]["perf_analyzer"] == 16
    assert summary["client_over_perf_analyzer"] == pytest.approx(written["served"]["texts_s"]["stream"] / 16, rel=0.01)
    assert set(written["echo"]) == {"stream", "tritonclient", "requests"}
    assert [texts for texts, _ in written["memory"]["mib_after_texts"]] == [10_000, 20_000]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
