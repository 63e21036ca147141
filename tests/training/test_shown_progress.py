"""What a user sees while a run works: the current loss, evaluations, and every phase after training."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polyhead_rows import progress
from polyhead_training.fitting.trainer import mean_loss
from tests.training.tiny_run import history, run, write_run


@pytest.mark.parametrize("training", ["", "gradient_accumulation_steps = 2"])
def test_the_shown_loss_is_that_of_the_last_steps(tmp_path: Path, training: str) -> None:
    """Of fewer steps than the window it is the mean of all of them, which the history has too."""
    result = run(write_run(tmp_path, training))
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("training, 100 %")]
    shown = re.search(r", loss (\S+), tokens/s", line)
    assert shown is not None, line
    entries = history(tmp_path / "out", "loss"), history(tmp_path / "out", "train_loss")
    assert float(shown[1]) == pytest.approx(entries[1][0], rel=6e-3)
    assert f"validation loss {history(tmp_path / 'out', 'eval_loss')[0]:.3g}" in line


def test_a_log_has_lines_of_every_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines, here one per step; evaluations and all that follows training are among them, in this order."""
    monkeypatch.setattr(progress, "LINE_S", 0)
    result = run(write_run(tmp_path, 'best_metric = "topic/macro_f1"'))
    assert result.exit_code == 0, result.output
    lines = result.output
    assert "\r" not in lines
    assert "\x1b" not in lines
    assert "evaluating 1 of 1 batches" in lines
    assert f"topic/macro_f1 {history(tmp_path / 'out', 'eval_topic/macro_f1')[0]:.3g}" in lines
    phases = (
        "reading data", "tokenizing train", "training, 100 %", "answering validation texts", "calibrating",
        "computing golden rows", "proving the engine with 4 golden rows", "evaluating 16 validation texts",
        "answering, 100 %", "writing the report",
    )  # fmt: skip
    places = [lines.rindex(phase) for phase in phases]
    assert places == sorted(places)


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    """With steps, time left, the current loss and the last evaluation; on a real terminal."""
    config = write_run(tmp_path, "epochs = 5")
    config.write_text(config.read_text(encoding="utf-8").replace("epochs = 2\n", ""), encoding="utf-8")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "polyhead_training.train_command", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ
        | {"COLUMNS": "200", "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"training .*20 of 20 steps, .* steps/s, 0:00 left, loss \S+, tokens/s .*validation loss", text)


def test_the_mean_of_a_history() -> None:
    """Each entry counts as often as its steps."""
    assert mean_loss([{"loss": 1.0, "step": 1}, {"loss": 4.0, "step": 3}]) == pytest.approx((1 + 2 * 4) / 3)
