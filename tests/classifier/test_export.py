"""Export puts a checkpoint into a repository completely, or not at all."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError, RepositoryError, ToleranceError
from polyhead.export import app, export_checkpoint
from polyhead.predictor import Predictor
from tests.tiny import SCHEMA, change_golden

ROOT = Path(__file__).resolve().parents[2]


def listing(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_repository_is_complete(base_checkpoint: Path, tmp_path: Path) -> None:
    """Config, labels, code and the checkpoint exist; the copy equals the original; no temporary file remains."""
    version = export_checkpoint(base_checkpoint, tmp_path / "repo")
    files = listing(tmp_path / "repo" / "gpt2_classifier")
    assert {"config.pbtxt", "labels.txt", "1/model.py", "1/checkpoint/config.json"} <= set(files)
    assert read_checkpoint(version / "checkpoint").schema == SCHEMA
    labels = (tmp_path / "repo" / "gpt2_classifier" / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == SCHEMA.column_names()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_versions_and_names(base_checkpoint: Path, tmp_path: Path) -> None:
    """A repository holds several versions and models; a version is replaced only on request."""
    repository = tmp_path / "repo"
    export_checkpoint(base_checkpoint, repository)
    export_checkpoint(base_checkpoint, repository, version=2)
    export_checkpoint(base_checkpoint, repository, name="other")
    assert (repository / "gpt2_classifier" / "2" / "model.py").exists()
    assert (repository / "other" / "config.pbtxt").exists()
    with pytest.raises(RepositoryError, match="already holds a checkpoint"):
        export_checkpoint(base_checkpoint, repository)
    export_checkpoint(base_checkpoint, repository, replace=True)


def test_an_edited_config_is_kept(base_checkpoint: Path, tmp_path: Path) -> None:
    """An edited config.pbtxt stays as it is; a missing one comes from the template."""
    config = tmp_path / "repo" / "gpt2_classifier" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    export_checkpoint(base_checkpoint, tmp_path / "repo")
    assert "max_batch_size: 64" in config.read_text(encoding="utf-8")
    config.write_text("# mine", encoding="utf-8")
    export_checkpoint(base_checkpoint, tmp_path / "repo", replace=True)
    assert config.read_text(encoding="utf-8") == "# mine"


def test_a_damaged_checkpoint_is_not_exported(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """A checkpoint that does not load leaves no file in the repository."""
    path = damaged()
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export_checkpoint(path, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_wrong_answers_are_not_exported(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """If scores leave the tolerance, the error names row and label; if the token count differs, it names the row."""
    path = damaged()
    third = read_checkpoint(path).golden()[2]
    moved = third.model_copy(update={"scores": (third.scores[0], third.scores[1] + 0.01, *third.scores[2:])})
    change_golden(path, lambda rows: [*rows[:2], moved, *rows[3:]])
    with pytest.raises(ToleranceError, match=r"jsonl:3: the engine's fp32 score of 'topic/sport' is off by 0.01"):
        export_checkpoint(path, tmp_path / "repo")
    change_golden(path, lambda _: [third.model_copy(update={"token_count": third.token_count + 1})])
    with pytest.raises(
        ToleranceError, match=r"golden.jsonl:1: read \d+ tokens here, but the golden row has \d+ tokens"
    ):
        Predictor.load(path).check_golden()
    assert not (tmp_path / "repo").exists()


def test_the_command_prints_one_line(tmp_path: Path) -> None:
    """A folder that is no checkpoint ends with exit code 2 and one line."""
    done = CliRunner().invoke(app, [str(tmp_path / "nothing"), "--repository", str(tmp_path / "repo")])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_the_environment_sets_options_but_never_replaces(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POLYHEAD_EXPORT_* set options; --replace destroys a checkpoint, so it must be on the command line."""
    for option, value in {"REPOSITORY": str(tmp_path / "repo"), "VERSION": "3", "REPLACE": "1"}.items():
        monkeypatch.setenv(f"POLYHEAD_EXPORT_{option}", value)
    first, second, third = (CliRunner().invoke(app, [str(base_checkpoint), *more]) for more in ([], [], ["--replace"]))
    assert (first.exit_code, second.exit_code, third.exit_code) == (0, 2, 0)
    assert (tmp_path / "repo" / "gpt2_classifier" / "3" / "checkpoint" / "config.json").exists()
    assert "already holds a checkpoint" in second.stderr


@pytest.mark.parametrize("module", ["errors", "export", "files", "precision", "repository", "schema"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    """Command lines import these modules, and torch takes seconds to import."""
    code = f"import sys, polyhead.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_wheel_carries_the_model_template(tmp_path: Path) -> None:
    """A wheel that is installed without a checkout can make a repository."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT / "classifier")]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("polyhead-*.whl")
    for name in ("config.pbtxt", "1/model.py"):
        carried = zipfile.ZipFile(wheel).read(f"polyhead/model_template/{name}")
        assert carried == (ROOT / "model_repository" / "gpt2_classifier" / name).read_bytes()


def test_a_failing_disk_leaves_the_served_version(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a copy fails, nothing changes and no file remains, for an existing model and for a new one."""
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
from polyhead.export import app
for limit in (64, 20_000):  # bytes per file: fails at the first file, and at the weights
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for more in (["--replace"], ["--version", "2"], ["--name", "other"]):
        assert app([*sys.argv[1:], *more], standalone_mode=False) == 2
"""


def test_a_disk_that_fills_up_leaves_nothing(base_checkpoint: Path, tmp_path: Path) -> None:
    """If a file cannot be written completely, one line says so, and the repository stays as it was."""
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
