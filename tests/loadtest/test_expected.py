"""Reading files of expected answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest import CannotRunError
from loadtest.expected import ExpectedAnswer, read_expected

ROW: dict[str, Any] = {"text": "a goal", "scores": [0.25, 1], "token_count": 2, "truncated": False}


def write(path: Path, *rows: Any) -> Path:
    """A golden file of these rows; a str is written as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_reads_rows(tmp_path: Path) -> None:
    """Each answer knows its line; blank lines are skipped, and characters that only look like line ends are text."""
    rows = read_expected(
        write(tmp_path / "golden.jsonl", ROW, "", json.dumps({**ROW, "text": "a\u2028b"}, ensure_ascii=False))
    )
    assert rows[0] == ExpectedAnswer(1, "a goal", (0.25, 1.0), 2, False)
    assert rows[1].line == 3
    assert rows[1].text == "a\u2028b"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", ":2: is not JSON"),
        ([], ":2: must be an object"),
        ({**ROW, "extra": 1}, "unknown field 'extra'; allowed are text, scores, token_count, truncated, fields"),
        ({"text": "a"}, "missing field 'scores'"),
        ({**ROW, "text": 3}, "text must be str, got int"),
        ({**ROW, "text": "  "}, "text must not be blank"),
        ({**ROW, "scores": [0.1, None]}, "scores must be finite numbers, got None"),
        ({**ROW, "scores": [0.1, float("nan")]}, "scores must be finite numbers, got None"),
        ({**ROW, "scores": [0.1]}, r":2: scores must be as many as in the first line \(2\), got 1"),
        ({**ROW, "token_count": True}, "token_count must be int, got bool"),
        ({**ROW, "token_count": 0}, "token_count must be at least 1"),
        ({**ROW, "truncated": 0}, "truncated must be bool"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, row: Any, words: str) -> None:
    """A line against the contract is refused with file, line and field."""
    with pytest.raises(CannotRunError, match=words):
        read_expected(write(tmp_path / "golden.jsonl", ROW, row))


def test_bad_file_is_named(tmp_path: Path) -> None:
    """A file that is missing, empty, a folder or not UTF-8 is refused with its path."""
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.touch()
    binary.write_bytes(b"\xff\n")
    for path, words in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "is a folder"),
        (empty, "is empty"),
        (binary, "not UTF-8"),
    ):
        with pytest.raises(CannotRunError, match=words) as caught:
            read_expected(path)
        assert str(path) in str(caught.value)
