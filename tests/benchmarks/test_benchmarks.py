"""The benchmarks run to their last line on a handful of rows; what they measure is committed, not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import training


def test_training_compares_at_one_loss(debian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Product and peers end at one validation loss; the last line has the ratios, the file every run."""
    out = tmp_path / "result.json"
    options = ["--data", str(debian), "--out", str(out), "--device", "cpu", "--shapes", "1x64:16:1",
               "--batch-size", "8", "--lengths", "16"]  # fmt: skip
    training.main(options)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ["1x64 fp32 16", "1x64 bf16 16"]
    assert summary.keys() == {f"{name} over {peer}" for name in names for peer in ("trainer", "trainer_tuned")}
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"]["1x64 fp32 16"]
    assert runs["polyhead"]["validation_loss"] == pytest.approx(runs["trainer"]["validation_loss"], rel=1e-4)
    assert runs["polyhead"]["real_tokens"] == runs["trainer"]["real_tokens"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_scoring_compares_with_the_engine(debian: Path, tmp_path: Path) -> None:
    """All three score all rows; the last line has the ratios, the file every run and the rates with the start."""
    options = ["--data", str(debian / "test.jsonl"), "--out", str(tmp_path / "result.json"), "--rows", "40",
               "--layers", "2", "--channels", "64", "--repeats", "1", "--threads", "1",
               "--partition-tokens", "100"]  # fmt: skip
    # In a process of its own: Ray warns of itself, and tests take warnings for errors.
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.scoring", *options],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert 0 < summary["score_over_engine_with_start"] < summary["score_over_engine"]
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["settings"]["rows"] == 40
    assert set(result["texts_s_all"]) == {"engine", "here", "here_with_start", "ray", "ray_with_start"}
