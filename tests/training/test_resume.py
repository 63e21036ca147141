"""Runs that were killed or stopped go on and end as an unbroken one; nothing unfinished is lost or mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polyhead_training.config import read_config
from polyhead_training.fitting.fit import fit
from polyhead_training.fitting.trainer import mean_loss
from tests.training.tiny_run import history, metrics, run, trained, weights, write_run

HEAD = 'head_class = "tests.signal_head:SignalHead"'
EVERY_THREE = "eval_steps = 3"  # of eight steps, four an epoch


def assert_same(resumed: Path, unbroken: Path) -> None:
    """The same losses, bit-identical weights, and the same files apart from times."""
    for name in ("loss", "eval_loss", "learning_rate", "total_flos"):
        assert history(resumed, name) == history(unbroken, name), name
    assert history(resumed, "train_loss") == pytest.approx(history(unbroken, "train_loss"))
    for name in ("config.json", "golden.jsonl", "tokenizer.json"):
        assert (resumed / name).read_text(encoding="utf-8") == (unbroken / name).read_text(encoding="utf-8"), name
    found, wanted = (metrics(checkpoint) for checkpoint in (resumed, unbroken))
    for each in (found, wanted):
        del each["training"]["seconds"], each["measured_on"]  # the second names the folder
    assert found == wanted
    expected = weights(unbroken)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_killed_run_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    """SIGKILL in step 6 of 8, in an epoch's midst; --resume starts from step 3 and ends with the same bits. The
    optimizer is Muon with AdamW, because it is from scratch.
    """
    unbroken = trained(write_run(tmp_path / "unbroken", EVERY_THREE, HEAD))
    config = write_run(tmp_path / "killed", EVERY_THREE, HEAD)
    killed = subprocess.run(
        [sys.executable, "-m", "polyhead_training.train_command", str(config)],
        env=os.environ
        | {
            "POLYHEAD_TEST_SIGNAL": f"{int(signal.SIGKILL)}@6",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",  # as in this process: sums of another order differ in their last bits
        },
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "out").exists()
    result = run(config, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing after step 3 of 8" in result.output
    assert "optimizer: muon for 6 matrices" in result.output
    assert_same(tmp_path / "killed" / "out", unbroken)
    assert not (tmp_path / "killed" / "out.training").exists()


@pytest.mark.parametrize(
    ("number", "at", "training"),
    [
        (signal.SIGINT, 4, 'optim = "adamw_torch_fused"'),  # an epoch's last step, after which it is evaluated
        (signal.SIGTERM, 5, f'layer_lr_decay = 0.8\ntrain_sampling_strategy = "group_by_length"\n{EVERY_THREE}'),
    ],
)
def test_a_stopped_run_saves_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int, training: str
) -> None:
    """The step in which the signal comes is finished and saved; exit code 130; resuming ends with the same weights
    and evaluations."""
    unbroken = trained(write_run(tmp_path / "unbroken", training, HEAD))
    config = write_run(tmp_path / "stopped", training, HEAD)
    monkeypatch.setenv("POLYHEAD_TEST_SIGNAL", f"{int(number)}@{at}")
    before = signal.getsignal(number)
    result = run(config)
    monkeypatch.delenv("POLYHEAD_TEST_SIGNAL")
    assert result.exit_code == 130
    assert result.stderr.endswith(
        f"polyhead-train: stopped; a checkpoint is saved; to continue: polyhead-train {config} --resume\n"
    )
    assert signal.getsignal(number) == before
    assert (tmp_path / "stopped" / "out.training" / "checkpoints" / f"checkpoint-{at}").is_dir()
    assert f"continuing after step {at}" in run(config, "--resume").output
    resumed = weights(tmp_path / "stopped" / "out")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights(unbroken).items())
    assert history(tmp_path / "stopped" / "out", "eval_loss") == history(unbroken, "eval_loss")


def test_a_run_that_is_resumed_twice_reports_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, times and the type of the weights are those of all sessions, not of the last one."""
    unbroken = trained(write_run(tmp_path / "unbroken", EVERY_THREE, HEAD))
    config = write_run(tmp_path / "stopped", EVERY_THREE, HEAD)
    checkpoints = tmp_path / "stopped" / "out.training" / "checkpoints"
    for option, at, step in (((), 2, 2), (("--resume",), 3, 5)):
        monkeypatch.setenv("POLYHEAD_TEST_SIGNAL", f"{int(signal.SIGINT)}@{at}")
        assert run(config, *option).exit_code == 130
        path = checkpoints / f"checkpoint-{step}" / "trainer_state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        assert state["log_history"][-1]["seconds"] >= 1000 * (step == 5)
        state["log_history"][-1]["seconds"] += 1000  # as if this session had taken so long
        path.write_text(json.dumps(state), encoding="utf-8")
    monkeypatch.delenv("POLYHEAD_TEST_SIGNAL")
    resumed = trained(config, "--resume")
    assert json.loads((resumed / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    expected = sum(loss * steps for loss, steps in zip(history(unbroken, "loss"), (3, 3, 2), strict=True)) / 8
    assert history(unbroken, "train_loss") == [pytest.approx(expected)]
    assert history(resumed, "train_loss") == [pytest.approx(expected)]
    assert metrics(resumed)["training"]["seconds"] > 2000
    assert history(resumed, "train_runtime")[0] > 2000
    assert history(resumed, "train_samples_per_second")[0] <= 32 / 2000
    assert history(resumed, "seconds") == sorted(history(resumed, "seconds"))


def test_a_mean_loss_weighs_each_step_once() -> None:
    """Each entry stands for the steps since the one before; others, as evaluations, for none."""
    entries = [{"loss": 4.0, "step": 1}, {"eval_loss": 9.0, "step": 1}, {"loss": 1.0, "step": 4}]
    assert mean_loss(entries) == 7 / 4
    assert mean_loss([]) == 0


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a run that was stopped in its second step."""
    config = write_run(tmp_path, "", HEAD)
    monkeypatch.setenv("POLYHEAD_TEST_SIGNAL", f"{int(signal.SIGINT)}@2")
    assert run(config).exit_code == 130
    monkeypatch.delenv("POLYHEAD_TEST_SIGNAL")
    return config


def test_an_unfinished_run_is_not_lost_by_starting_again(unfinished: Path) -> None:
    """Without an option one line says what there is to choose; --restart begins at the first step."""
    result = run(unfinished)
    assert result.exit_code == 2
    assert "there is an unfinished run here; continue it with --resume or delete it with --restart" in result.stderr
    result = run(unfinished, "--restart")
    assert result.exit_code == 0, result.output
    assert "continuing" not in result.output


def test_a_run_does_not_go_on_with_another_config(unfinished: Path) -> None:
    """The field that changed is named with both values."""
    unfinished.write_text(unfinished.read_text(encoding="utf-8").replace("epochs = 2", "epochs = 3"), encoding="utf-8")
    result = run(unfinished, "--resume")
    assert result.exit_code == 2
    assert "cannot continue: training.epochs was 2.0 and is 3.0" in result.stderr


def test_a_run_does_not_go_on_with_other_data(unfinished: Path) -> None:
    """One word of one row suffices."""
    rows = unfinished.parent / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("cats dig", "cats digg"), encoding="utf-8")
    result = run(unfinished, "--resume")
    assert result.exit_code == 2
    assert "cannot continue: the data changed" in result.stderr


def test_a_checkpoint_that_was_being_written_is_passed_over(unfinished: Path) -> None:
    """A kill amid saving leaves a checkpoint without its last file; an older one or the start is taken."""
    (unfinished.parent / "out.training" / "checkpoints" / "checkpoint-2" / "trainer_state.json").unlink()
    result = run(unfinished, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing" not in result.output


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    """--resume never starts a run by itself."""
    result = run(write_run(tmp_path), "--resume")
    assert result.exit_code == 2
    assert "there is no unfinished run here; start without --resume" in result.stderr


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    """What merely has the working folder's name is not removed."""
    config = write_run(tmp_path)
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "thesis.txt").write_text("all of it", encoding="utf-8")
    for option in ([], ["--restart"]):
        result = run(config, *option)
        assert result.exit_code == 2
        assert "holds something that is no training run" in result.stderr
    assert (tmp_path / "out.training" / "thesis.txt").exists()


def test_a_trained_model_is_written_without_training_again(tmp_path: Path) -> None:
    """A run that failed after its last step resumes with writing alone."""
    config = write_run(tmp_path)
    unbroken = trained(write_run(tmp_path / "unbroken"))

    def say(line: str) -> None:
        if line.startswith("calibrating"):
            raise FullDiskError

    with pytest.raises(FullDiskError):
        fit(read_config(config), say)
    result = run(config, "--resume")
    assert result.exit_code == 0, result.output
    assert "training, 100 %" not in result.output
    assert_same(tmp_path / "out", unbroken)


class FullDiskError(Exception):
    """What may come after training."""
