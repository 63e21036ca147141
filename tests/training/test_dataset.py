"""``polyhead-dataset`` with an apt-get that serves handwritten lists, and without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyhead_training import dataset as debian
from polyhead_training.dataset import app, check_dataset_folder, write_dataset
from polyhead_training.errors import DataError
from tests.training.test_debian import write_lists


def test_the_data_set_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files appear, and the rows are counted."""
    monkeypatch.setattr(debian, "MIN_SECTION_ROWS", 1)
    monkeypatch.setattr(debian, "MIN_TAG_ROWS", 1)
    lists = write_lists(tmp_path / "lists", [(f"tool{i}", "utils", "role::program, use::editing") for i in range(60)])
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    # The private state folder is the one argument that ends in /state.
    apt.write_text(
        f'#!/bin/sh\nfor a in "$@"; do case "$a" in Dir::State=*) cp {lists}/* "${{a#*=}}/lists/";; esac; done\n',
        encoding="utf-8",
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:/usr/bin:/bin")
    result = CliRunner().invoke(app, ["debian", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "1 sections, 1 roles, 1 tags" in result.output
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (row["section"], row["role"], row["tags"]) == ("utils", "program", ["use::editing"])


def test_a_folder_that_is_no_data_set_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before apt is looked for; an empty folder and an older data set are replaced."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "out").mkdir()
    check_dataset_folder(tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").touch()
    result = CliRunner().invoke(app, ["debian", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"polyhead-dataset: {tmp_path}/out: holds something that is no data set and is not replaced; "
        "name another folder\n"
    )
    with pytest.raises(DataError, match="no data set"):
        write_dataset(tmp_path / "out", [], {}, "")
    with pytest.raises(DataError, match="no data set"):
        write_dataset(tmp_path / "out" / "thesis.txt", [], {}, "")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]
    for text in ("old", "new"):
        write_dataset(tmp_path / "set", [("train", {"text": text})], {}, "")
    assert json.loads((tmp_path / "set" / "train.jsonl").read_text(encoding="utf-8")) == {"text": "new"}


def test_without_apt_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, and how to use one's own CSV."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["debian", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no apt-get on this machine" in result.stderr
    assert 'data.train = "my.csv"' in result.stderr
    assert result.stderr.count("\n") == 1
