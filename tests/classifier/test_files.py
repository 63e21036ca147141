"""Files and folders appear complete or not at all; a lock has one holder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from polyhead.files import LockedError, file_lock, replaced_file, replaced_folder, swap_folder, write_file


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


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt("no space")])
def test_a_failed_rename_puts_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new folder cannot be renamed into place, or Ctrl-C comes before that, the old one is renamed back."""
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename = os.rename

    def fail_for_new(source: Any, target: Any) -> None:
        if Path(source).name == "new":
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(type(error), match="no space"):
        swap_folder(tmp_path / "new", tmp_path / "target", tmp_path / "old")
    assert (tmp_path / "target" / "target").exists()
