"""``polyhead-score`` with a checkpoint proves it first, and a text without finite scores has an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from polyhead.predictor import NOT_FINITE
from polyhead_scoring.command import app
from tests.tiny import OVERFLOWING, TEXTS, overflow


def score(checkpoint: Path, folder: Path, texts: list[str]) -> tuple[Result, list[Any]]:
    """Scores texts; the result of the command, and the rows of its output."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    output = folder / "answers.jsonl"
    result = CliRunner().invoke(
        app, [str(folder / "rows.jsonl"), "--output", str(output), "--checkpoint", str(checkpoint)]
    )
    rows = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
    return result, [json.loads(row) for row in rows]


def test_a_text_whose_scores_overflow_has_an_error(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """Its row has the reason and no answer; all others have theirs, and the exit code says that a row failed."""
    checkpoint = damaged()
    overflow(checkpoint)
    result, rows = score(checkpoint, tmp_path, [TEXTS[0], OVERFLOWING, TEXTS[1]])
    assert result.exit_code == 1, result.output
    assert [row["error"] for row in rows] == [None, NOT_FINITE, None]
    assert {rows[1][name] for name in ("topic_label", "topic_score", "mood_labels", "stars_value")} == {None}


def reverse_labels(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["polyhead"]["heads"][0]["labels"].reverse()
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")


def change_weights(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["head.weight"][0, 0] += 1
    save_file(tensors, checkpoint / "model.safetensors")


@pytest.mark.parametrize("change", [reverse_labels, change_weights])
def test_scoring_proves_the_checkpoint_first(
    damaged: Callable[[], Path], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Exchanged labels and other weights are refused with one line; nothing is written."""
    checkpoint = damaged()
    change(checkpoint)
    result, rows = score(checkpoint, tmp_path, TEXTS)
    assert (result.exit_code, "golden.jsonl:" in result.stderr, rows) == (2, True, []), result.output
