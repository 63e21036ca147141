"""Files and folders appear complete or not at all; a lock has one holder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from polyhead import files
from polyhead.files import (
    ExchangeError,
    LockedError,
    exchange,
    file_lock,
    replaced_file,
    replaced_folder,
    swap_folder,
    sync_tree,
    write_file,
)


def fail_midway(path: Path) -> None:
    """Creates a file and fails."""
    path.write_text("half", encoding="utf-8")
    raise ValueError("midway")


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """A second holder is refused with the path; after the first it gets the lock."""
    with file_lock(tmp_path / "lock"), pytest.raises(LockedError, match=r"lock: another process"):
        file_lock(tmp_path / "lock").__enter__()
    with file_lock(tmp_path / "lock"):
        pass


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """An error leaves the old content; no temporary file remains in either case."""
    path = tmp_path / "file"
    write_file(path, "old")
    with pytest.raises(ValueError, match="midway"), replaced_file(path) as part:
        fail_midway(part)
    assert path.read_text(encoding="utf-8") == "old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_in_one_step(tmp_path: Path) -> None:
    """An error leaves the old folder; no temporary folder remains in either case."""
    path = tmp_path / "parent" / "folder"
    for content in ("old", "new"):
        with pytest.raises(ValueError, match="midway"), replaced_folder(path) as fresh:
            fail_midway(fresh / "half")
        with replaced_folder(path) as fresh:
            (fresh / content).touch()
        assert [file.name for file in path.iterdir()] == [content]
        assert list(path.parent.iterdir()) == [path]


def no_exchange(first: Path, second: Path) -> None:
    """As on a file system that cannot exchange."""
    raise ExchangeError(95, "Operation not supported")


def test_two_folders_are_exchanged(tmp_path: Path) -> None:
    """Both exist at every moment; if one does not exist, both stay as they were."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_without_an_exchange_a_folder_is_still_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange two folders gets two renames."""
    monkeypatch.setattr(files, "exchange", no_exchange)
    for content in ("old", "new"):
        with replaced_folder(tmp_path / "folder") as fresh:
            (fresh / content).touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/new"]


def test_a_tree_is_synced_with_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is synced, a folder after what it holds; links are not followed."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "a" / "link").symlink_to("/nonexistent")
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    sync_tree(tmp_path / "a")
    assert [str(path.relative_to(tmp_path)) for path in synced] == ["a/b/file", "a/b", "a"]


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt("no space")])
def test_a_failed_rename_puts_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an exchange: if the second rename fails, or Ctrl-C comes before it, the old folder is renamed back."""
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename = os.rename

    def fail_for_new(source: Any, target: Any) -> None:
        if Path(source).name == "new":
            raise error
        rename(source, target)

    monkeypatch.setattr(files, "exchange", no_exchange)
    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(type(error), match="no space"):
        swap_folder(tmp_path / "new", tmp_path / "target", tmp_path / "old")
    assert (tmp_path / "target" / "target").exists()
