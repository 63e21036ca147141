"""Export puts a checkpoint into a repository whole, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError, RepositoryError, ToleranceError
from polyhead.export import export_checkpoint, main
from polyhead.gate import check_golden
from polyhead.predictor import Predictor
from tests.tiny import SCHEMA

ROOT = Path(__file__).resolve().parents[2]


def listing(folder: Path) -> list[str]:
    """All files below a folder, and nothing hidden beside it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_repository_is_complete(base_checkpoint: Path, tmp_path: Path) -> None:
    """Config, labels, code and the checkpoint are there; the copy reads as the original; nothing is left beside."""
    version = export_checkpoint(base_checkpoint, tmp_path / "repo")
    files = listing(tmp_path / "repo" / "gpt2_classifier")
    assert {"config.pbtxt", "labels.txt", "1/model.py", "1/checkpoint/config.json"} <= set(files)
    assert read_checkpoint(version / "checkpoint").schema == SCHEMA
    labels = (tmp_path / "repo" / "gpt2_classifier" / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == SCHEMA.column_names()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_versions_and_names(base_checkpoint: Path, tmp_path: Path) -> None:
    """A second version and a second model stand beside the first; a version is replaced only if told so."""
    repository = tmp_path / "repo"
    export_checkpoint(base_checkpoint, repository)
    export_checkpoint(base_checkpoint, repository, version=2)
    export_checkpoint(base_checkpoint, repository, name="other")
    assert (repository / "gpt2_classifier" / "2" / "model.py").exists()
    assert (repository / "other" / "config.pbtxt").exists()
    with pytest.raises(RepositoryError, match="holds a checkpoint already"):
        export_checkpoint(base_checkpoint, repository)
    export_checkpoint(base_checkpoint, repository, replace=True)


def test_a_config_of_ones_own_is_kept(base_checkpoint: Path, tmp_path: Path) -> None:
    """An edited config.pbtxt stays as it is; one that is missing comes from the template."""
    config = tmp_path / "repo" / "gpt2_classifier" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    export_checkpoint(base_checkpoint, tmp_path / "repo")
    assert "max_batch_size: 64" in config.read_text(encoding="utf-8")
    config.write_text("# mine", encoding="utf-8")
    export_checkpoint(base_checkpoint, tmp_path / "repo", replace=True)
    assert config.read_text(encoding="utf-8") == "# mine"


def test_a_damaged_checkpoint_is_not_exported(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """Nothing is written for a checkpoint that does not load."""
    path = damaged()
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export_checkpoint(path, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_wrong_answers_are_not_exported(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """Scores off golden.jsonl by more than the tolerance name the row and the label; a token count likewise."""
    path = damaged()
    lines = (path / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[2])
    row["scores"][1] += 0.01
    (path / "golden.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]), encoding="utf-8")
    with pytest.raises(ToleranceError, match=r"jsonl:3: the engine's fp32 score of 'topic/sport' is off by 0.01"):
        export_checkpoint(path, tmp_path / "repo")
    row["token_count"] += 1
    (path / "golden.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ToleranceError, match=r"golden.jsonl:1: \d+ tokens here, \d+ there"):
        check_golden(Predictor.load(path))
    assert not (tmp_path / "repo").exists()


def test_the_command_line_says_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no checkpoint ends with exit code 2 and one line."""
    assert main([str(tmp_path / "nothing"), "--repository", str(tmp_path / "repo")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_wheel_carries_the_model_template(tmp_path: Path) -> None:
    """A polyhead that is installed without a checkout can still make a repository."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT / "classifier")]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("polyhead-*.whl")
    for name in ("config.pbtxt", "1/model.py"):
        carried = zipfile.ZipFile(wheel).read(f"polyhead/model_template/{name}")
        assert carried == (ROOT / "model_repository" / "gpt2_classifier" / name).read_bytes()


def test_a_failing_disk_leaves_the_served_version(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes and nothing remains if a copy fails, for a model that is there and for a new one."""
    repository = tmp_path / "repo"
    export_checkpoint(base_checkpoint, repository)
    before = listing(repository)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyhead.export.shutil.copytree", fail)
    for name in ("gpt2_classifier", "other"):
        with pytest.raises(RepositoryError, match=r"No space left on device.*nothing was exported"):
            export_checkpoint(base_checkpoint, repository, name=name, replace=True)
    assert listing(repository) == before
    assert [path.name for path in repository.iterdir()] == ["gpt2_classifier"]


FULL_DISK = """
import resource, sys
from polyhead.export import main
for limit in (64, 20_000):  # bytes of a file: of the first one, and of the weights
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for more in (["--replace"], ["--version", "2"], ["--name", "other"]):
        assert main([*sys.argv[1:], *more]) == 2
"""


def test_a_disk_that_fills_up_leaves_nothing(base_checkpoint: Path, tmp_path: Path) -> None:
    """Where a file cannot be written to its end, one line says so, and the repository is as it was."""
    repository = tmp_path / "repo"
    export_checkpoint(base_checkpoint, repository)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    command = [sys.executable, "-c", FULL_DISK, str(base_checkpoint), "--repository", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert ["nothing was exported" in line for line in lines] == [True] * 6
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in repository.glob("*/*")) == ["1", "config.pbtxt", "labels.txt"]
