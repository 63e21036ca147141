"""A full disk ends every command with one line: what is kept, and how to go on."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from polyhead.files import why_full
from polyhead_training import evaluate_command, import_checkpoint
from tests.full_disk_head import limited
from tests.training.test_import import BASE, CASES, HEADS, write_library_checkpoint
from tests.training.tiny_run import run, trained, weights, write_run

HEAD = 'head_class = "tests.full_disk_head:FullDiskHead"\nhead_args = { layer2concat = 1 }'
EVERY_THREE = 'eval_steps = 3\noptim = "adamw_torch_fused"'  # of eight steps
LARGE = "File too large"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "PyTorch could not write"),
        (OSError(errno.EACCES, "Permission denied"), None),
        (ValueError("No space"), None),
    ],
)
def test_a_full_disk_is_recognised(error: Exception, reason: str | None) -> None:
    """In whatever a library makes of it, also below other errors."""
    outer = RuntimeError("saving failed")
    outer.__cause__ = error
    for found in (why_full(error), why_full(outer)):
        assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize("size", [2_000, 60_000, 150_000])
def test_nothing_is_kept_before_the_first_save(tmp_path: Path, size: int) -> None:
    """While rows, the rehearsed model or the first step are written; afterwards the same command starts again."""
    config = write_run(tmp_path, EVERY_THREE, HEAD)
    with limited(size):
        result = run(config)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    assert LARGE in result.stderr or "PyTorch could not write" in result.stderr
    if "rows cannot be written" not in result.stderr:
        assert "nothing of this run is kept yet. Make room" in result.stderr
        assert "then start again" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_from_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of step 6 fails, step 3 is kept, and --resume ends with the weights of an unbroken run."""
    unbroken = trained(write_run(tmp_path / "unbroken", EVERY_THREE, HEAD))
    config = write_run(tmp_path / "full", EVERY_THREE, HEAD)
    monkeypatch.setenv("POLYHEAD_TEST_STEP", "5")
    monkeypatch.setenv("POLYHEAD_TEST_BYTES", "10000")
    with limited():
        result = run(config)
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith(f"polyhead-train: {tmp_path}/full: ") or "/tmp" in result.stderr
    assert "the run is kept up to step 3. Make room" in result.stderr
    assert "then --resume goes on from there" in result.stderr
    saved = tmp_path / "full" / "out.training" / "checkpoints"
    assert [path.name for path in saved.iterdir()] == ["checkpoint-3"]  # no half of a step takes room
    monkeypatch.delenv("POLYHEAD_TEST_STEP")
    result = run(config, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing after step 3 of 8" in result.output
    for name, tensor in weights(unbroken).items():
        assert torch.equal(tensor, weights(tmp_path / "full" / "out")[name]), name


def test_trained_weights_are_kept(tmp_path: Path) -> None:
    """If only the checkpoint or its report cannot be written, nothing is trained again."""
    config = write_run(tmp_path, 'optim = "sgd"')  # without moments, so that the report is the largest file
    trained(config)
    before = weights(tmp_path / "out")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()}
    between = (sizes["index.html"] + sizes["model.safetensors"]) // 2
    assert sizes["index.html"] - between > 500  # the page also has times, so that its size varies by some bytes
    with limited(between):
        result = run(config)
    assert result.exit_code == 2, result.output
    assert f"the trained weights are kept in {tmp_path}/out.training/trained" in result.stderr
    assert weights(tmp_path / "out").keys() == before.keys()  # the older checkpoint is still there
    result = run(config, "--resume")
    assert result.exit_code == 0, result.output
    assert "training, 100 %" not in result.output
    for name, tensor in before.items():
        assert torch.equal(tensor, weights(tmp_path / "out")[name]), name


def test_evaluate_keeps_the_older_report(tmp_path: Path) -> None:
    """One line, and the report of before."""
    checkpoint = trained(write_run(tmp_path))
    arguments = [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "report")]
    assert CliRunner().invoke(evaluate_command.app, arguments).exit_code == 0
    before = (tmp_path / "report" / "index.html").read_bytes()
    with limited(20_000):
        result = CliRunner().invoke(evaluate_command.app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].endswith("nothing was replaced: make room and run the command again")
    assert LARGE in result.stderr
    assert (tmp_path / "report" / "index.html").read_bytes() == before


def test_import_writes_all_or_nothing(tmp_path: Path) -> None:
    """The weights cannot be written; no half of a checkpoint stays."""
    write_library_checkpoint(tmp_path / "folder", CASES[0][0]())
    rows = "".join(json.dumps({"text": f"text {place}"}) + "\n" for place in range(9))
    (tmp_path / "texts.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "import.toml").write_text(
        f'{BASE}\nmax_length = 48\ntexts = "{tmp_path}/texts.jsonl"\n{HEADS}\n', "utf-8"
    )
    options = ["--config", str(tmp_path / "import.toml"), "--output", str(tmp_path / "out")]
    with limited(50_000):
        result = CliRunner().invoke(import_checkpoint.app, [str(tmp_path / "folder"), *options])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert LARGE in result.stderr
    assert "make room and run the command again" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "import.toml", "texts.jsonl"]
