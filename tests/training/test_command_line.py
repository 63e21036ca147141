"""What the commands promise whoever starts them: signals are heard, and variables cannot destroy anything."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from polyhead_training import dataset, evaluate_command, import_checkpoint, train_command
from tests.training.test_resume import HEAD
from tests.training.tiny_run import run, trained, weights, write_run


def run_ignoring_sigint(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``polyhead-train`` as a script's shell starts ``command &``: with SIGINT ignored."""
    command = shlex.join([sys.executable, "-m", "polyhead_training.train_command", *arguments])
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        ["bash", "-c", f"trap '' INT; exec {command}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_ctrl_c_saves_even_if_the_parent_ignores_it(tmp_path: Path) -> None:
    """A run stopped in its fifth step of eight says how to continue, and does with the weights of an unbroken one."""
    unbroken = trained(write_run(tmp_path / "unbroken", model=HEAD))
    config = write_run(tmp_path / "stopped", model=HEAD)
    stopped = run_ignoring_sigint(str(config), POLYHEAD_TEST_SIGNAL=f"{int(signal.SIGINT)}@5")
    assert stopped.returncode == 130, stopped.stderr
    assert f"to continue: polyhead-train {config} --resume" in stopped.stderr
    assert "continuing after step 5 of 8" in run(config, "--resume").output
    resumed = weights(tmp_path / "stopped" / "out")
    assert all(bool((tensor == resumed[name]).all()) for name, tensor in weights(unbroken).items())


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_data_are_read_ends_in_one_line(tmp_path: Path, name: str) -> None:
    """Exit code 130, no traceback, and no scratch folder stays."""
    config = write_run(tmp_path, data=f'filters = ["tests.user_functions:send_{name.lower()}"]')
    (tmp_path / "scratch").mkdir()
    stopped = run_ignoring_sigint(str(config), TMPDIR=str(tmp_path / "scratch"))
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == "polyhead-train: interrupted; if an unfinished run is saved, --resume continues it\n"
    assert not list((tmp_path / "scratch").glob("polyhead-*"))


def test_handlers_are_put_back(tmp_path: Path) -> None:
    """A program that calls the command in its own process keeps its own."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(tmp_path / "none.toml").exit_code == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_restart_is_no_variable(tmp_path: Path) -> None:
    """A variable that was set for another command deletes no unfinished run; other options have theirs."""
    environment = {"POLYHEAD_RESTART": "1", "POLYHEAD_TRAIN_RESTART": "1", "POLYHEAD_TRAIN_DRY_RUN": "1"}
    result = CliRunner(env=environment).invoke(train_command.app, [str(write_run(tmp_path)), "--resume"])
    assert "--resume and --restart contradict each other" not in result.stderr
    assert "POLYHEAD_TRAIN_RESTART" not in CliRunner().invoke(train_command.app, ["--help"]).output
    options = {option.name: option for option in get_command(train_command.app).params}
    assert options["restart"].allow_from_autoenv is False


def test_each_command_has_its_own_variables() -> None:
    """Their prefix is the command's name."""
    apps = {
        "POLYHEAD_TRAIN": train_command.app,
        "POLYHEAD_EVALUATE": evaluate_command.app,
        "POLYHEAD_IMPORT": import_checkpoint.app,
        "POLYHEAD_DATASET": dataset.app,
    }
    for prefix, app in apps.items():
        assert get_command(app).context_settings["auto_envvar_prefix"] == prefix
