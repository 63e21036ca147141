"""A full disk ends scoring, golden rows and an export with one line, and the same command goes on or starts again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead import export
from polyhead_scoring import command, golden
from tests.full_disk_head import limited
from tests.tiny import TEXTS


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in 4 * TEXTS), encoding="utf-8")
    return path


def invoke(app: Any, *arguments: object) -> str:
    """The command's one line of error; it ends with exit code 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "out"])
def test_scoring_goes_on(tmp_path: Path, base_checkpoint: Path, rows: Path, name: str) -> None:
    """It names the output; with room the same command ends."""
    arguments = [rows, "--checkpoint", base_checkpoint, "--output", tmp_path / name, "--quiet"]
    with limited(1500):
        message = invoke(command.app, *arguments)
    assert message == (
        f"polyhead-score: {tmp_path / name}: File too large; what is scored is kept: make room, and the same command "
        "continues\n"
    )
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "40 rows" in result.output


def test_golden_rows_are_written_whole(tmp_path: Path, base_checkpoint: Path, rows: Path) -> None:
    """The older file stays."""
    (tmp_path / "out.jsonl").write_text("older", encoding="utf-8")
    with limited(1500):
        message = invoke(golden.app, base_checkpoint, rows, tmp_path / "out.jsonl")
    assert f"{tmp_path}/out.jsonl: cannot be written (File too large)" in message
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_nothing_is_exported(tmp_path: Path, base_checkpoint: Path) -> None:
    """No half of a version stays in the repository."""
    with limited(20_000):
        message = invoke(export.app, base_checkpoint, "--repository", tmp_path / "repository")
    assert "File too large" in message
    assert "nothing was exported" in message
    assert not list(tmp_path.rglob("config.json"))
