"""Which files of a folder are a checkpoint, how they are copied, and how they are read within bounds."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead import checkpoint_files as module
from polyhead.checkpoint_files import checkpoint_files, copy_checkpoint, other_names, read_json, read_text
from polyhead.errors import CheckpointError

SECRET = "root:secret"


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their relative names."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def checkpoint(base_checkpoint: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint with a report."""
    path = Path(shutil.copytree(base_checkpoint, tmp_path / "checkpoint"))
    (path / "report" / "index.html").write_text("<html>", encoding="utf-8")
    (path / "distribution.json").write_text("{}", encoding="utf-8")
    return path


def test_a_copy_has_the_files_of_the_contract_and_no_other(checkpoint: Path, tmp_path: Path) -> None:
    """What else lies in the folder is named and not copied; copies are readable for all, writable for the owner."""
    (checkpoint / "optimizer.pt").write_bytes(b"x")
    (checkpoint / ".git").mkdir()
    (checkpoint / "report" / "old").mkdir()
    (checkpoint / "config.json").chmod(0o600)
    wanted = {name: content for name, content in contents(checkpoint).items() if name != "optimizer.pt"}
    copy_checkpoint(checkpoint, tmp_path / "copy")
    assert contents(tmp_path / "copy") == wanted
    assert {str(file.relative_to(checkpoint)) for file in checkpoint_files(checkpoint)} == set(wanted)
    assert other_names(checkpoint) == [".git", "optimizer.pt", "report/old/"]
    for file in (tmp_path / "copy").rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o755 if file.is_dir() else 0o644)


def link_to(target: str) -> Callable[[Path], None]:
    """Makes a link at a path."""
    return lambda path: path.symlink_to(target)


def make_socket(path: Path) -> None:
    """A socket at a path, which may be longer than the kernel takes."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "distribution.json", "report", "report/index.html"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link_to("/etc/passwd"), "is a link"),
        (link_to("../secret.txt"), "is a link"),
        (link_to("nowhere"), "is a link"),
        (link_to("/etc"), "is a link"),
        (os.mkfifo, "is a pipe"),
        (make_socket, "is a socket"),
    ],
)
def test_what_is_no_regular_file_is_refused(
    checkpoint: Path, tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    """A link to a file or a folder, absolute, relative or broken, a pipe and a socket are one line; nothing waits."""
    (tmp_path / "secret.txt").write_text(SECRET, encoding="utf-8")
    path = checkpoint / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make(path)
    for refuse in (checkpoint_files, lambda folder: copy_checkpoint(folder, tmp_path / "copy")):
        with pytest.raises(CheckpointError, match=message) as caught:
            refuse(checkpoint)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy").exists()


def test_a_file_that_becomes_a_link_during_the_copy_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at the names comes first; a file or folder that is swapped after it is not followed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "index.html").write_text(SECRET, encoding="utf-8")
    look = module._names

    def swap_file(folder: Path) -> list[str]:
        names = look(folder)
        (checkpoint / "tokenizer.json").unlink()
        (checkpoint / "tokenizer.json").symlink_to(secret / "index.html")
        return names

    def swap_folder(folder: Path) -> list[str]:
        names = look(folder)
        shutil.rmtree(checkpoint / "report")
        (checkpoint / "report").symlink_to(secret)
        return names

    for number, swap in enumerate((swap_folder, swap_file)):
        monkeypatch.setattr(module, "_names", swap)
        with pytest.raises((CheckpointError, OSError)):
            copy_checkpoint(checkpoint, tmp_path / f"copy{number}")
        assert SECRET.encode() not in contents(tmp_path / f"copy{number}").values()
        monkeypatch.setattr(module, "_names", look)


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    """Only metrics.json, distribution.json and report/ may be missing."""
    shutil.rmtree(checkpoint / "report")
    (checkpoint / "distribution.json").unlink()
    (checkpoint / "metrics.json").unlink()
    assert len(checkpoint_files(checkpoint)) == 4
    (checkpoint / "golden.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"golden\.jsonl: is missing"):
        checkpoint_files(checkpoint)
    with pytest.raises(CheckpointError, match="is not a checkpoint folder; it does not exist"):
        checkpoint_files(checkpoint / "none")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """A file that says it has a terabyte is one line at once."""
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="is larger than 32 MiB"):
        read_text(tmp_path / "config.json")


def test_reading_a_pipe_does_not_wait(tmp_path: Path) -> None:
    """A pipe without a writer is refused; opening it must not block."""
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is a pipe"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": ' + "9" * 5000 + "}", "is too large"),
        ('{"a": {"b": 1, "b": 2}}', "the name 'b' occurs twice"),
        ('{"\\u0061": 1, "a": 2}', "the name 'a' occurs twice"),
        ("[" * 100 + "]" * 100, "nested more than 32 deep"),
        ("[" * 1_000_000, "is not JSON"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_json_beyond_its_standard_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Numbers that are not finite, doubled names and deep nesting are one line."""
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
