"""Export puts a checkpoint into a repository completely, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead import export, repository
from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError, RepositoryError, ToleranceError
from polyhead.export import app, export_checkpoint
from polyhead.files import ExchangeError
from polyhead.predictor import Predictor
from polyhead.repository import served_versions, versions_of
from polyhead.schema import Head, Schema
from tests.tiny import SCHEMA, change_golden, write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def listing(folder: Path) -> list[str]:
    """All files below a folder, except locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(str(path.relative_to(folder)) for path in files)


def test_a_new_repository_is_complete(base_checkpoint: Path, tmp_path: Path) -> None:
    """Config, labels, code and the checkpoint exist; the copy equals the original; no temporary file remains."""
    version = export_checkpoint(base_checkpoint, tmp_path / "repo")
    files = listing(tmp_path / "repo" / "gpt2_classifier")
    assert {"config.pbtxt", "1/labels.txt", "1/model.py", "1/checkpoint/config.json"} <= set(files)
    assert read_checkpoint(version / "checkpoint").schema == SCHEMA
    labels = (version / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == SCHEMA.column_names()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_versions_and_names(base_checkpoint: Path, tmp_path: Path) -> None:
    """A repository holds several versions and models; the highest export is served; one is replaced on request only."""
    repository = tmp_path / "repo"
    for version in (2, 3, 1):
        export_checkpoint(base_checkpoint, repository, version=version)
    export_checkpoint(base_checkpoint, repository, name="other")
    assert (repository / "gpt2_classifier" / "2" / "model.py").exists()
    assert served_versions(repository / "gpt2_classifier") == [3]
    assert (repository / "other" / "config.pbtxt").exists()
    with pytest.raises(RepositoryError, match="already holds a checkpoint"):
        export_checkpoint(base_checkpoint, repository)
    export_checkpoint(base_checkpoint, repository, replace=True)


def test_an_edited_config_is_kept(base_checkpoint: Path, tmp_path: Path) -> None:
    """Of an edited config.pbtxt, only the version and its labels change; a missing one comes from the template."""
    config = tmp_path / "repo" / "gpt2_classifier" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    export_checkpoint(base_checkpoint, tmp_path / "repo")
    assert "max_batch_size: 64" in config.read_text(encoding="utf-8")
    config.write_text("# mine", encoding="utf-8")
    export_checkpoint(base_checkpoint, tmp_path / "repo", replace=True)
    assert config.read_text(encoding="utf-8") == "# mine\nversion_policy { specific { versions: [ 1 ] } }\n"
    config.write_text("max_batch_size: 8\nversion_policy { all { } }", encoding="utf-8")
    with pytest.raises(RepositoryError, match=r"config.pbtxt: version_policy serves several versions"):
        export_checkpoint(base_checkpoint, tmp_path / "repo", version=2)
    assert versions_of(config.parent) == [1]


def test_a_config_for_a_gpu_is_only_for_a_new_model(base_checkpoint: Path, tmp_path: Path) -> None:
    """--gpu makes the config of a new model; an existing one stays, and the error says which values to write there."""
    config = tmp_path / "repo" / "gpt2_classifier" / "config.pbtxt"
    export_checkpoint(base_checkpoint, tmp_path / "repo", gpu=True)
    before = config.read_text(encoding="utf-8")
    assert "max_batch_size: 256\n" in before
    with pytest.raises(RepositoryError, match=r"--gpu would do nothing.*max_batch_size: 256, count: 2, .*0\.002"):
        export_checkpoint(base_checkpoint, tmp_path / "repo", version=2, gpu=True)
    assert versions_of(config.parent) == [1]
    export_checkpoint(base_checkpoint, tmp_path / "repo", version=2)
    assert config.read_text(encoding="utf-8") == before.replace("versions: [ 1 ]", "versions: [ 2 ]").replace(
        '"1/labels.txt"', '"2/labels.txt"'
    )


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


@pytest.mark.parametrize("module", ["errors", "export", "files", "interface", "precision", "repository", "schema"])
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

    monkeypatch.setattr("polyhead.export.copy_checkpoint", fail)
    for name in ("gpt2_classifier", "other"):
        with pytest.raises(RepositoryError, match=r"No space left on device.*nothing was exported"):
            export_checkpoint(base_checkpoint, repository, name=name, replace=True)
    assert listing(repository) == before
    assert [path.name for path in repository.iterdir() if path.is_dir()] == ["gpt2_classifier"]


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
    before = {path: path.read_bytes() for path in repository.rglob("[!.]*") if path.is_file()}
    command = [sys.executable, "-c", FULL_DISK, str(base_checkpoint), "--repository", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert ["nothing was exported" in line for line in lines] == [True] * 6
    assert {path: path.read_bytes() for path in repository.rglob("[!.]*") if path.is_file()} == before
    assert sorted(path.name for path in repository.glob("*/*")) == ["1", "config.pbtxt"]


@pytest.fixture(scope="module")
def other_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without the head `mood`."""
    path = tmp_path_factory.mktemp("other") / "checkpoint"
    write_tiny_checkpoint(path, schema=Schema([SCHEMA["topic"], SCHEMA["stars"], Head(name="x", kind="regression")]))
    return path


@pytest.mark.parametrize("options", [["--replace"], ["--version", "2"]])
def test_changes_for_callers_are_told_and_refused(
    base_checkpoint: Path, other_heads: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other heads in the place of the served ones are refused; the flag allows them, and no variable does."""
    monkeypatch.setenv("POLYHEAD_EXPORT_ALLOW_SCHEMA_CHANGE", "1")
    place = ["--repository", str(tmp_path / "repo")]
    export_checkpoint(base_checkpoint, tmp_path / "repo")
    before = {path: path.read_bytes() for path in (tmp_path / "repo").rglob("*") if path.is_file()}
    refused = CliRunner().invoke(app, [str(other_heads), *place, *options])
    assert refused.exit_code == 2
    assert refused.stdout.splitlines() == [
        "breaks callers: head 'mood' (multi_label, 4 labels) is gone",
        "changes: head 'x' (regression) is new",
        "breaks callers: SCORES: 1 of 8 columns move, the first is 'stars' from position 7 to 3",
    ]
    assert "--allow-schema-change" in refused.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "repo").rglob("*") if path.is_file()} == before
    done = CliRunner().invoke(app, [str(other_heads), *place, *options, "--allow-schema-change"])
    assert done.exit_code == 0
    model = tmp_path / "repo" / "gpt2_classifier"
    (version,) = served_versions(model)
    labels = (model / str(version) / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels[3:] == ["stars/value", "x/value"]


def test_a_version_that_is_not_served_changes_nothing_for_callers(
    base_checkpoint: Path, other_heads: Path, tmp_path: Path
) -> None:
    """A lower version with other heads is exported, and the command says which version is served."""
    export_checkpoint(base_checkpoint, tmp_path, version=5)
    done = CliRunner().invoke(app, [str(other_heads), "--repository", str(tmp_path), "--version", "4"])
    assert done.exit_code == 0
    assert "Triton serves version 5" in done.stdout.splitlines()[-1]
    assert served_versions(tmp_path / "gpt2_classifier") == [5]


def test_links_are_not_exported(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """A link in a checkpoint could bring in any file of this machine: it is named, and nothing is exported."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = damaged()
    (path / "report").mkdir(exist_ok=True)
    (path / "report" / "link").symlink_to(secret)
    with pytest.raises(CheckpointError, match="report/link"):
        export_checkpoint(path, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_a_repository_inside_the_checkpoint_is_refused(damaged: Callable[[], Path]) -> None:
    """Else the copy would be copied too, without end."""
    path = damaged()
    with pytest.raises(CheckpointError, match="is inside of it"):
        export_checkpoint(path, path / "model_repository")
    assert not (path / "model_repository").exists()


def test_the_copy_is_proved(damaged: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that changes after it is copied changes nothing; the errors of a copy name the original."""
    path, original = damaged(), export.prove

    def prove_while_it_changes(copy: Path, precision: str | None) -> Any:
        (path / "model.safetensors").write_bytes(b"")
        return original(copy, precision)

    monkeypatch.setattr(export, "prove", prove_while_it_changes)
    version = export_checkpoint(path, tmp_path / "repo")
    assert read_checkpoint(version / "checkpoint").schema == SCHEMA
    with pytest.raises(CheckpointError, match=f"^{path}/model.safetensors"):
        export_checkpoint(path, tmp_path / "repo", version=2)


def test_other_users_can_read_and_not_write(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """Whatever the umask and the modes of the checkpoint, the server's user can read all, and others write nothing."""
    path = damaged()
    (path / "model.safetensors").chmod(0o600)
    (path / "golden.jsonl").chmod(0o666)
    before = os.umask(0o077)
    try:
        export_checkpoint(path, tmp_path / "repo")
        export_checkpoint(path, tmp_path / "repo", version=2)
    finally:
        os.umask(before)
    model = tmp_path / "repo" / "gpt2_classifier"
    modes = {path.stat().st_mode & 0o777 for path in [model, *model.rglob("*")]}
    assert modes == {0o755, 0o644}


def test_all_is_on_the_disk_before_it_is_served(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure too, config.pbtxt names only a version of which every file and folder was synced."""
    synced: set[int] = set()
    steps: list[str] = []
    fsync, rename, exchanged = os.fsync, os.rename, repository.exchange

    def check(folder: Path) -> None:
        files = [folder, *folder.rglob("*")]
        assert [path for path in files if path.stat().st_ino not in synced] == []
        steps.append(folder.name)

    def sync_and_note(number: int) -> None:
        fsync(number)
        synced.add(os.fstat(number).st_ino)

    def rename_when_synced(source: Any, target: Any) -> None:
        if Path(target).name in ("gpt2_classifier", "2"):
            check(Path(source))
        elif Path(target).name == "config.pbtxt" and Path(target).parent.name == "gpt2_classifier":
            check(Path(target).with_name("2"))
            assert Path(source).stat().st_ino in synced
        rename(source, target)

    def exchange_when_synced(first: Path, second: Path) -> None:
        check(first)
        exchanged(first, second)

    monkeypatch.setattr(os, "fsync", sync_and_note)
    monkeypatch.setattr(os, "rename", rename_when_synced)
    monkeypatch.setattr(os, "replace", rename_when_synced)
    monkeypatch.setattr(repository, "exchange", exchange_when_synced)
    export_checkpoint(base_checkpoint, tmp_path / "repo")
    export_checkpoint(base_checkpoint, tmp_path / "repo", version=2)
    export_checkpoint(base_checkpoint, tmp_path / "repo", version=2, replace=True)
    assert steps == [".staging+gpt2_classifier", "version", "2", "version"]


def test_without_an_exchange_nothing_is_replaced(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that cannot exchange folders, a version is not replaced in two steps; a new one is exported."""

    def no_exchange(first: Path, second: Path) -> None:
        raise ExchangeError(22, "Invalid argument")

    monkeypatch.setattr(repository, "exchange", no_exchange)
    export_checkpoint(base_checkpoint, tmp_path)
    with pytest.raises(RepositoryError, match=r"one step on this file system.*new --version"):
        export_checkpoint(base_checkpoint, tmp_path, replace=True)
    export_checkpoint(base_checkpoint, tmp_path, version=2)
    assert served_versions(tmp_path / "gpt2_classifier") == [2]


def test_a_file_system_without_locks_is_named(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have no locks: then two exports could meet, so none is made."""

    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("polyhead.files.fcntl.flock", no_locks)
    with pytest.raises(RepositoryError, match=r"No locks available.*must be writable and have locks"):
        export_checkpoint(base_checkpoint, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "a b", ".hidden", "a\n"])
def test_names_stay_in_the_repository(name: str, base_checkpoint: Path, tmp_path: Path) -> None:
    """A name that is no plain folder's name is refused."""
    with pytest.raises(RepositoryError, match="a model name has"):
        export_checkpoint(base_checkpoint, tmp_path / "repo", name)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("version", [0, -1, 2**63])
def test_version_numbers_are_those_of_triton(version: int, base_checkpoint: Path, tmp_path: Path) -> None:
    """Triton reads them as int64, and 0 is never exported."""
    with pytest.raises(RepositoryError, match="must be from 1 to"):
        export_checkpoint(base_checkpoint, tmp_path / "repo", version=version)
