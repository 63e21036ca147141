"""The 24 small files on which readers used to disagree: each reader of the product gives the same rows and reasons.

`cases.json` has, for each file, its bytes (one latin-1 character per byte) and what it gives: texts, reasons with their
lines, or the error of the whole file. A new reader joins by a line in READERS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyhead_rows.errors import TableError
from polyhead_rows.table_file import BadText, find_files, open_table, read_texts, text_of

CASES = json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
DEEP = b'{"text":"a"}\n' + 100_000 * b"[" + b'\n{"text":"c"}\n'  # too long for a file of cases


@dataclass(frozen=True)
class Reason:
    """Why a row has no text; the line is None if the reader does not say it."""

    text: str
    line: int | None = None


Read = list[str | Reason]


def read_table(path: Path) -> Read:
    """The reader itself."""
    table = open_table(str(path))
    table.check_columns(["text"])
    found: Read = []
    for row in table.rows():
        text = text_of(row, "text")
        found.append(Reason(text.reason, row.line) if isinstance(text, BadText) else text)
    return found


def read_table_from_each_row(path: Path) -> Read:
    """The reader, opened anew behind every row."""
    found: Read = []
    start = None
    while True:
        table = open_table(str(path))
        table.check_columns(["text"])
        row = next(table.rows(start), None)
        if row is None:
            return found
        text = text_of(row, "text")
        found.append(Reason(text.reason, row.line) if isinstance(text, BadText) else text)
        start = row.after


READERS: dict[str, Callable[[Path], Read]] = {
    "open_table": read_table,
    "open_table from each row": read_table_from_each_row,
}


def write_case(folder: Path, name: str) -> Path:
    """The file of a case."""
    path = folder / name
    path.write_bytes(DEEP if name == "deep.jsonl" else CASES[name]["bytes"].encode("latin-1"))
    return path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_same_rows(reader: str, name: str, tmp_path: Path) -> None:
    """A row that cannot be read has a reason and its line, and costs no other row."""
    path, gives = write_case(tmp_path, name), CASES[name]["gives"]
    if isinstance(gives, dict):
        with pytest.raises(Exception, match=name.replace(".", r"\.")) as caught:
            READERS[reader](path)
        assert gives["error"] in str(caught.value)
        return
    found = READERS[reader](path)
    assert len(found) == len(gives)
    for one, wanted in zip(found, gives, strict=True):
        if isinstance(wanted, str):
            assert one == wanted
        else:
            assert isinstance(one, Reason)
            assert wanted["reason"] in one.text
            assert one.line in (None, wanted["line"])


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(CASES[name]["gives"], list)])
def test_read_texts_stops_at_the_first_bad_row_and_names_its_place(name: str, tmp_path: Path) -> None:
    """The error has the file, the line and the reason."""
    path, gives = write_case(tmp_path, name), CASES[name]["gives"]
    bad = next((one for one in gives if isinstance(one, dict)), None)
    if bad is None:
        assert list(read_texts(str(path), "text")) == gives
        return
    with pytest.raises(TableError) as caught:
        list(read_texts(str(path), "text"))
    assert str(caught.value).startswith(f"{path}:{bad['line']}: ")
    assert bad["reason"] in str(caught.value)


def test_a_folder_stands_for_all_cases(tmp_path: Path) -> None:
    """Each of their names has a format."""
    for name in CASES:
        write_case(tmp_path, name)
    assert [Path(path).name for path in find_files(str(tmp_path))] == sorted(CASES)


def test_the_documentation_says_what_each_case_means() -> None:
    """Its table has a line per case, in the same order."""
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    lines = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.split("`")[1] in CASES]
    assert lines == list(CASES)
