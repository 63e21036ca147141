"""The load test as it is run, against a fake Triton; in its own process, since locust patches the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.fake_triton import ANSWER, SCHEMA, SCORES, FakeTriton, serve_fake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    """A fresh fake Triton."""
    with serve_fake() as server:
        yield server


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A golden file that agrees with the fake."""
    rows = [
        {"text": text, "scores": SCORES, "token_count": 4, "truncated": False} for text in ("a goal", "naïve", "third")
    ]
    path = tmp_path / "golden.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_locust(url: str, golden: Path | None, *arguments: str) -> tuple[int, str, dict[str, Any] | None]:
    """Exit code, output and summary of a short run."""
    folder = golden.parent if golden else Path.cwd()
    summary = folder / "summary.json"
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtest/locustfile.py",
        "--headless",
        "-u",
        "2",
        "-r",
        "2",
    ]
    command += ["-t", "1s", "--host", f"http://{url}", "--summary", str(summary), *arguments]
    command += ["--golden", str(golden)] if golden else []
    paths = [str(ROOT), str(ROOT / "client"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    written = json.loads(summary.read_text()) if golden and summary.is_file() else None
    return result.returncode, result.stdout + result.stderr, written


def test_right_answers_are_exit_code_0(fake: FakeTriton, golden: Path) -> None:
    """When all answers agree the run succeeds, and the summary counts texts, not requests."""
    code, output, summary = run_locust(fake.url, golden, "--texts-per-request", "3")
    assert code == 0, output
    assert summary is not None
    assert summary["texts"] == 3 * summary["requests"] > 0
    assert (summary["mismatches"], summary["errors"], summary["exit_code"]) == (0, 0, 0)
    assert summary["texts_per_s"] > 0
    assert summary["p95_ms"] >= summary["p50_ms"]
    assert "all answers agree with golden" in output
    assert list(golden.parent.glob("*.part")) == []
    assert len(fake.requests[-1]["texts"]) == 3


def test_wrong_answers_are_exit_code_1(fake: FakeTriton, golden: Path) -> None:
    """One wrong answer among right ones fails the run and is counted as a mismatch, not as an error."""
    fake.answer = lambda text: {**ANSWER, "token_count": 4 if text != "naïve" else 5}
    code, output, summary = run_locust(fake.url, golden)
    assert code == 1, output
    assert summary is not None
    assert summary["mismatches"] > 0
    assert summary["errors"] == 0
    assert summary["texts"] + summary["mismatches"] == summary["requests"]
    assert "golden line 2: token_count 5, expected 4" in output


def test_failing_server_is_exit_code_1(fake: FakeTriton, golden: Path) -> None:
    """Requests that fail after a good start are errors, and nothing answered is no success."""
    fake.answer = lambda text: b"no json"
    code, output, summary = run_locust(fake.url, golden)
    assert code == 1, output
    assert summary is not None
    assert summary["errors"] == summary["requests"] > 0
    assert summary["texts"] == 0


def test_bad_golden_is_exit_code_2(fake: FakeTriton, golden: Path) -> None:
    """A golden file that is damaged, of another model, or not named is refused before any user starts."""
    golden.write_text(golden.read_text() + "{\n")
    code, output, summary = run_locust(fake.url, golden)
    assert code == 2
    assert f"{golden}:4: is not JSON" in output
    assert summary is None
    row = {"text": "a", "scores": [0.5], "token_count": 1, "truncated": False}
    golden.write_text(json.dumps(row) + "\n")
    code, output, _ = run_locust(fake.url, golden)
    assert code == 2
    assert "has 1 scores a text, the served model 6" in output
    code, output, _ = run_locust(fake.url, None)
    assert code == 2
    assert "--golden PATH is required" in output
    assert all(request["outputs"] == ["SCHEMA"] for request in fake.requests)


def test_no_server_is_exit_code_2(golden: Path) -> None:
    """Without a server the run ends at once and says so."""
    code, output, summary = run_locust("127.0.0.1:1", golden)
    assert code == 2
    assert "no connection to http://127.0.0.1:1" in output
    assert summary is None


def test_bad_option_is_exit_code_2(fake: FakeTriton, golden: Path) -> None:
    """Options out of range are refused by name."""
    for option, value in (("--texts-per-request", "65"), ("--tolerance", "nan"), ("--seed", "x")):
        code, output, _ = run_locust(fake.url, golden, option, value)
        assert code == 2
        assert option in output


def test_hanging_server_is_exit_code_1(fake: FakeTriton, golden: Path) -> None:
    """Requests still under way when the time is up are waited for, and end as errors."""
    calls: list[str] = []

    def answer_then_hang(text: str) -> Any:
        calls.append(text)
        if len(calls) > 10:
            time.sleep(4)
        return ANSWER

    fake.answer = answer_then_hang
    code, output, summary = run_locust(fake.url, golden, "--request-timeout-s", "1.5")
    assert code == 1, output
    assert summary is not None
    assert summary["errors"] > 0


def test_other_heads_than_the_checkpoints_are_refused(fake: FakeTriton, golden: Path) -> None:
    """Labels and thresholds come from config.json beside the golden file; the server's must be the same."""
    config = golden.parent / "config.json"
    config.write_text(json.dumps({"polyhead": SCHEMA}), encoding="utf-8")
    assert run_locust(fake.url, golden)[0] == 0
    changed = json.loads(json.dumps(SCHEMA))
    changed["heads"][0]["labels"] = ["sport", "news", "science"]
    config.write_text(json.dumps({"polyhead": changed}), encoding="utf-8")
    code, output, _ = run_locust(fake.url, golden)
    assert code == 2
    assert "heads differ from those in config.json" in output
