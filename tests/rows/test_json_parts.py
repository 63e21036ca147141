"""A JSON object of arrays: its name has the array behind ``#``; rows may be lists of cells."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from polyhead_rows.errors import TableError
from polyhead_rows.table_file import ReadOptions, find_files, open_table

CELLS = ReadOptions(header=False, columns=("text", "label"))
SPLITS = {
    "version": "1.0",
    "train": [["one", "a"], ["two, [2]", "b"]],
    "extra": {"train": [["no", "no"]]},
    "val": [["three", "c"]],
}


def write(path: Path, content: object = SPLITS) -> str:
    """The content as JSON on several lines."""
    text = json.dumps(content, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["splits.json", "splits.json.gz"])
def test_an_array_of_an_object(name: str, tmp_path: Path) -> None:
    """What stands before it is passed over; what stands behind it is not read."""
    path = write(tmp_path / name)
    found = {part: [row.fields for row in open_table(f"{path}#{part}", CELLS).rows()] for part in ("train", "val")}
    assert found == {
        "train": [{"text": "one", "label": "a"}, {"text": "two, [2]", "label": "b"}],
        "val": [{"text": "three", "label": "c"}],
    }
    assert find_files([f"{path}#train", f"{path}#val", f"{path}#train"]) == [f"{path}#train", f"{path}#val"]


def test_rows_go_on_behind_any_row(tmp_path: Path) -> None:
    """As in every other format."""
    name = write(tmp_path / "splits.json") + "#train"
    first = next(open_table(name, CELLS).rows())
    assert [row.number for row in open_table(name, CELLS).rows(first.after)] == [2]


def test_objects_in_a_part(tmp_path: Path) -> None:
    """SQuAD's form: rows are objects and need no names."""
    path = write(tmp_path / "data.json", {"data": [{"text": "one"}, {"text": "two"}]})
    assert [row.fields for row in open_table(f"{path}#data").rows()] == [{"text": "one"}, {"text": "two"}]


def test_lists_of_cells_in_json_lines(tmp_path: Path) -> None:
    """A row with too few cells is a bad row and costs no other."""
    (tmp_path / "rows.jsonl").write_text('["one", "a"]\n["two"]\n{"text": "three"}\n', encoding="utf-8")
    rows = list(open_table(str(tmp_path / "rows.jsonl"), CELLS).rows())
    assert [row.fields for row in rows] == [{"text": "one", "label": "a"}, None, {"text": "three"}]
    assert rows[1].reason == "has 1 cells, but columns names 2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("splits.json#test", "the object has no 'test'; it has 'version', 'train', 'extra', 'val'"),
        ("splits.json#version", "'\\[' is expected, got '\"'"),
        ("array.json#train", "must hold an object of arrays, because its name has a part behind #"),
        ("plain.json", "holds an object of arrays; name the one with the rows, such as .*plain.json#train"),
        ("none.json#train", "no such file"),
    ],
)
def test_what_is_wrong_is_named(name: str, message: str, tmp_path: Path) -> None:
    """One line with the name as it was given."""
    write(tmp_path / "splits.json")
    write(tmp_path / "plain.json", {"train": [["one", "a"]]})
    write(tmp_path / "array.json", [["one", "a"]])
    with pytest.raises(TableError, match=message) as caught:
        list(open_table(find_files(str(tmp_path / name))[0], CELLS).rows())
    assert "\n" not in str(caught.value)


def test_a_file_of_the_whole_name_comes_first(tmp_path: Path) -> None:
    """People have files named like that."""
    path = write(tmp_path / "a.json#b", [{"text": "one"}])
    assert [row.fields for row in open_table(path, ReadOptions(format="json")).rows()] == [{"text": "one"}]
