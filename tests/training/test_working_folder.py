"""The working folder: one run at a time, which goes on only as itself, and logs that outlive it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead_training.config import TrainingConfig, read_config
from polyhead_training.data.corpus import Corpus, read_corpus
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.working_folder import WorkingFolder
from tests.training.tiny_run import run, write_run


@pytest.fixture
def described(tmp_path: Path) -> tuple[TrainingConfig, Corpus]:
    """A config that names files for a warm start and pretrained weights, and its rows."""
    (tmp_path / "more.csv").write_text("text\nbirds fly\n", encoding="utf-8")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"1234")
    more = f'[warm_start]\ntexts = "{tmp_path}/*.csv"'
    config = read_config(write_run(tmp_path, model=f'pretrained = "{tmp_path}/gpt2"', more=more))
    return config, read_corpus(config.data, config.heads, tmp_path / "scratch")


def test_two_runs_do_not_write_to_one_output(tmp_path: Path) -> None:
    """The second one is refused with one line and the first goes on; a file that a killed run left locks nothing."""
    config = write_run(tmp_path)
    lock = tmp_path / ".out.training.lock"
    lock.touch()
    with WorkingFolder(tmp_path / "out").lock():
        result = run(config)
        assert result.exit_code == 2
        assert result.stderr == (
            f"polyhead-train: {tmp_path}/out.training: another run is writing here; "
            "wait for its end or name another output\n"
        )
        assert lock.exists()
    assert not lock.exists()
    with WorkingFolder(tmp_path / "out").lock():
        pass


@pytest.mark.parametrize("output", [".", "..", "/", "runs/.."])
def test_an_output_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    """One line says so."""
    monkeypatch.chdir(tmp_path)
    result = run(write_run(tmp_path), "--output", output)
    assert result.exit_code == 2
    assert result.stderr == f"polyhead-train: output {output!r}: must name a new folder, as 'runs/reviews'\n"


def test_a_file_of_the_folders_name_is_left_alone(tmp_path: Path) -> None:
    """It is no training run."""
    (tmp_path / "out.training").write_text("mine", encoding="utf-8")
    result = run(write_run(tmp_path), "--restart")
    assert result.exit_code == 2
    assert "out.training: holds something that is no training run" in result.stderr
    assert (tmp_path / "out.training").read_text(encoding="utf-8") == "mine"


def test_logs_outlive_later_runs(described: tuple[TrainingConfig, Corpus]) -> None:
    """Each run's stay, apart from the others'; without logs nothing stays."""
    work = WorkingFolder(described[0].output)
    for number in range(3):
        work.check(resume=False, restart=False)
        work.begin(*described, processes=1, resume=False)
        if number < 2:
            work.logs.mkdir()
            (work.logs / "events").write_text(str(number), encoding="utf-8")
        work.clear()
    assert {path.name: (path / "events").read_text("utf-8") for path in work.path.iterdir()} == {
        "logs-1": "0",
        "logs-2": "1",
    }
    for path in work.path.iterdir():
        (path / "events").unlink()
        path.rmdir()
    work.clear()
    assert not work.path.exists()


def test_a_run_goes_on_only_as_itself(described: tuple[TrainingConfig, Corpus]) -> None:
    """Processes, texts of the warm start and pretrained weights, of the same size and time or not; each is named."""
    config, corpus = described
    work = WorkingFolder(config.output)
    work.begin(config, corpus, processes=1, resume=False)
    work.begin(config, corpus, processes=1, resume=True)
    with pytest.raises(
        ConfigError, match="cannot continue: number of processes was 1 and is 2; change it back or start"
    ):
        work.begin(config, corpus, processes=2, resume=True)
    folder = config.output.parent
    for name, message in {
        "more.csv": "the text of warm_start.texts changed",
        "gpt2/model.safetensors": "the weights of model.pretrained changed",
    }.items():
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-2] + b"xx")
        with pytest.raises(ConfigError, match=f"cannot continue: {message}"):
            work.begin(config, corpus, processes=1, resume=True)
        (folder / name).write_bytes(content)


def test_a_run_goes_on_in_its_precision(described: tuple[TrainingConfig, Corpus]) -> None:
    """What auto became counts, as it is another one on another machine."""
    config, corpus = described
    work = WorkingFolder(config.output)
    work.begin(config, corpus, processes=1, resume=False)
    record = work.path / "run.json"
    run = json.loads(record.read_text(encoding="utf-8"))
    run["machine"]["precision"] = "fp8"
    record.write_text(json.dumps(run), encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot continue: precision was 'fp8' and is '"):
        work.begin(config, corpus, processes=1, resume=True)
