"""The load test against a real tritonserver, over both protocols."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.local_server import ROOT, LocalServer
from polyhead_scoring.golden import write_golden
from tests.tiny import TEXTS


def load(
    served: LocalServer, golden: Path, checkpoint: Path, protocol: str, *arguments: str
) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and summary of a short run."""
    summary = golden.parent / f"{protocol}.json"
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary",
               "--host", f"http://{served.url(protocol)}", "--protocol", protocol,
               "--metrics-url", f"http://{served.url('metrics')}/metrics", "--golden", str(golden),
               "--checkpoint", str(checkpoint), "--summary", str(summary), *arguments]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, done.stdout + done.stderr, json.loads(summary.read_text(encoding="utf-8"))


@pytest.fixture
def checkpoint(repository: Path) -> Path:
    """What is served."""
    return repository / "gpt2_classifier" / "1" / "checkpoint"


@pytest.fixture
def golden(checkpoint: Path, tmp_path: Path) -> Path:
    """Expected answers to texts of our own, made by the engine."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{' '.join(text.split())} {place}\n" for text in TEXTS for place in range(10)), "utf-8")
    assert write_golden(checkpoint, str(texts), tmp_path / "expected.jsonl")
    return tmp_path / "expected.jsonl"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    "shape", [["-u", "4"], ["--shape", "open", "--rate", "100", "-u", "2"]], ids=["closed", "open"]
)
def test_right_answers(protocol: str, shape: list[str], served: LocalServer, golden: Path, checkpoint: Path) -> None:
    """Every answer is right, the server's stages are known, and as many texts and tokens were computed as answered."""
    code, output, summary = load(served, golden, checkpoint, protocol, *shape, "-t", "3s", "--texts-per-request", "1,8")
    assert code == 0, output
    assert summary["texts"] > 50
    assert summary["tokens"] > summary["texts"]
    assert set(summary["server"]) == {"queue", "tokenize", "compute", "decode"}
    assert 0 < summary["server"]["compute"]["mean_ms"] < summary["p99_ms"]
    assert summary["server"]["queue"]["mean_ms"] > 0
    assert summary["texts_per_micro_batch"] >= 1
    assert summary["tolerance_reason"].startswith("the server's schema states it for ")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_wrong_answers(protocol: str, served: LocalServer, golden: Path, checkpoint: Path) -> None:
    """One wrong expected score in a hundred texts fails the run, over either protocol."""
    lines = golden.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[7])
    row["scores"][-1] += 0.1  # the number, which every answer names
    golden.write_text("\n".join([*lines[:7], json.dumps(row), *lines[8:]]) + "\n", encoding="utf-8")
    code, output, summary = load(
        served, golden, checkpoint, protocol, "-u", "4", "-t", "2s", "--texts-per-request", "16"
    )
    assert code == 1, output
    assert 0 < summary["mismatches"] < summary["requests"]
    assert summary["errors"] == 0
    assert "golden line 8: " in output
