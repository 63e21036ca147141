"""The texts that the page takes, the examples, and the table that it gives."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from polyhead_client import ModelSchema, Prediction, UsageError
from polyhead_client.schema import HeadKind, HeadSchema
from polyhead_client.ui.table import SHOWN_ROWS, Answered, build_columns, csv_file, table_html
from polyhead_client.ui.texts import MOST_TEXTS, example_title, read_file, read_golden, read_lines

EVIL = "<img src=x onerror=alert(1)>"


def test_lines() -> None:
    """Each line that is not blank is a text."""
    assert read_lines(" one\r\n\n  \ntwo, three\n") == [" one", "two, three"]


@pytest.mark.parametrize("pasted", ["", " \n ", "line\n" * (MOST_TEXTS + 1), "w" * (5 * 1024**2 + 1)])
def test_too_few_and_too_many(pasted: str) -> None:
    """The message says what is allowed, and what takes more."""
    with pytest.raises(
        UsageError, match=r"no texts|at most 1,000 texts and 5 MiB at a time; for more use polyhead-score"
    ):
        read_lines(pasted)


@pytest.mark.parametrize(
    ("name", "content", "fields", "texts"),
    [
        ("a.txt", "one\ntwo\n", (), ["one", "two"]),
        ("a.csv", "\ufefftext,n\n\"a, \"\"b\"\"\nc\",1\n\nd,2\n", (), ['a, "b"\nc', "d"]),
        ("a.csv", "comment\nonly\n", (), ["only"]),
        ("a.tsv", "id\ttext\n1\ta,b\n", (), ["a,b"]),
        ("a.CSV", "Title,Body,n\nT,B,1\n", ("Title", "Body"), [{"Title": "T", "Body": "B"}]),
        ("a.csv", "Body,n\nB,1\n", ("Title", "Body"), [{"Body": "B"}]),
        ("a.csv", "text,n\nB,1\n", ("Title", "Body"), ["B"]),
        ("a.jsonl", '{"text": "one", "n": 1}\n\n"two"\n', (), ["one", "two"]),
        ("a.jsonl", '{"Title": null, "Body": "B"}\n', ("Title", "Body"), [{"Title": "", "Body": "B"}]),
    ],
)  # fmt: skip
def test_files(tmp_path: Path, name: str, content: str, fields: tuple[str, ...], texts: list[object]) -> None:
    """Columns with the names of fields are fields; otherwise one column has the texts."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_file(tmp_path / name, fields, "text") == texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pdf", b"x", "must end with .csv, .tsv, .jsonl, .txt"),
        ("a.csv", b"text\ngood\n\xff\n", "line 3 of the file is not UTF-8"),
        ("a.csv", b"text,n\na\n", "line 2 of the file has 1 cells, its header 2"),
        ("a.csv", b'text\n"a\n', "is not CSV"),
        ("a.csv", b"one,two\na,b\n", "has the columns ['one', 'two'], but needs 'text'"),
        ("a.csv", b"text\n", "there are no texts"),
        ("a.jsonl", b'"a"\n{"text"\n', "line 2 of the file is not JSON"),
        ("a.jsonl", b'{"text": 3, "n": 1}\n', "line 1 of the file: 'text' must be a text, got 3"),
        ("a.jsonl", b"[1]\n", "line 1 of the file must be a text or an object, got [1]"),
        ("a.txt", b"w" * (5 * 1024**2 + 1), "the file has 5,242,881 bytes; at most 1,000 texts and 5 MiB"),
        ("a.csv", b"text\n" + b"a\n" * 1001, "there are 1,001 texts; at most 1,000"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """The message says what is wrong, and in which line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_file(tmp_path / name, (), "text")
    assert words in str(caught.value)


def test_golden_rows(tmp_path: Path) -> None:
    """Rows with fields give their fields; the folder of a checkpoint stands for its golden.jsonl."""
    rows = [{"text": "one\u2028line"}, {"text": "T. B", "fields": {"Title": "T", "Body": None}}]
    path = tmp_path / "golden.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    examples = read_golden(tmp_path)
    assert examples == read_golden(path) == ["one\u2028line", {"Title": "T", "Body": ""}]
    assert [example_title(number, text) for number, text in enumerate(examples, start=1)] == ["1. one line", "2. T"]
    assert len(example_title(1, "word " * 100)) == 3 + 90


@pytest.mark.parametrize("line", ["text", "[]", "{}", '{"text": 3}', '{"text": "a", "fields": {"A": 3}}'])
def test_other_files_are_no_golden_rows(tmp_path: Path, line: str) -> None:
    """The message names the line."""
    path = tmp_path / "golden.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"golden\.jsonl:2"):
        read_golden(path)
    with pytest.raises(UsageError, match=r"cannot be read"):
        read_golden(tmp_path / "nothing.jsonl")


HEADS = (
    HeadSchema("topic", HeadKind.SINGLE_LABEL, ("news", "sport")),
    HeadSchema("mood", HeadKind.MULTI_LABEL, ("happy", "sad"), (0.5, 0.5)),
    HeadSchema("stars", HeadKind.REGRESSION),
)
SCHEMA = ModelSchema(64, HEADS)


def said(topic: str, mood: list[str], stars: float) -> Prediction:
    """An answer; each label has the score 0.75."""
    heads = {
        "topic": {"kind": HeadKind.SINGLE_LABEL, "labels": [topic], "scores": [0.75]},
        "mood": {"kind": HeadKind.MULTI_LABEL, "labels": mood, "scores": [0.75] * len(mood),
                 "thresholds": [0.5] * len(mood)},
        "stars": {"kind": HeadKind.REGRESSION, "value": stars},
    }  # fmt: skip
    return Prediction.from_json(json.dumps({"heads": heads, "token_count": 4, "truncated": False}))


TEXTS = ['a, "b"\nc', EVIL, " "]
FIRST = Answered(SCHEMA, [said("news", ["happy"], 2.5), said("sport", [], 0.1), Prediction(error="blank")])
SECOND = Answered(SCHEMA, [said("news", ["happy"], 2.5), said("sport", ["sad"], 1.5), Prediction(error="blank")])


def test_the_file_has_the_columns_of_all_answers() -> None:
    """Lists are JSON and nulls empty; the text comes first."""
    rows = list(csv.reader(io.StringIO(csv_file(build_columns(TEXTS, [FIRST])))))
    assert rows == [
        ["text", "topic_label", "topic_score", "mood_labels", "mood_scores", "stars_value", "token_count", "truncated",
         "error"],
        [TEXTS[0], "news", "0.75", '["happy"]', "[0.75]", "2.5", "4", "false", ""],
        [EVIL, "sport", "0.75", "[]", "[]", "0.1", "4", "false", ""],
        [" ", "", "", "", "", "", "", "", "blank"],
    ]  # fmt: skip


def test_two_models_stand_in_one_table() -> None:
    """The second one's columns have a prefix, and the last column names the heads that differ."""
    columns = build_columns(TEXTS, [FIRST, SECOND])
    assert columns["differs"] == ["", "mood, stars", ""]
    assert columns["other_mood_labels"] == [["happy"], ["sad"], None]
    html = table_html(columns)
    assert "<b>1 text was answered differently</b>" in html
    assert "2 of 3 texts were answered" in html


def test_fields_have_columns() -> None:
    """Texts with fields stand in the columns of their fields."""
    columns = build_columns([{"Title": "T", "Body": "B"}, {"Body": "C"}, "plain"], [FIRST])
    assert {name: columns[name] for name in ("text", "Title", "Body")} == {
        "text": ["", "", "plain"], "Title": ["T", "", ""], "Body": ["B", "C", ""],
    }  # fmt: skip


def test_the_table_shows_the_first_rows_and_no_markup() -> None:
    """Texts and labels are never HTML, and long tables are cut in the page only."""
    many = Answered(SCHEMA, [said("news", [EVIL], 1.0)] * (SHOWN_ROWS + 5))
    columns = build_columns([EVIL] * (SHOWN_ROWS + 5), [many])
    html = table_html(columns)
    assert "<img" not in html
    assert html.count("<tr>") == SHOWN_ROWS + 1
    assert "The first 100 are below, the file has all." in html
    assert len(csv_file(columns).splitlines()) == SHOWN_ROWS + 6
