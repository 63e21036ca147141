"""Input files: each format reads every row once however it is cut, and says what is wrong with one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from polyhead_scoring.errors import InputError
from polyhead_scoring.formats import FORMATS
from polyhead_scoring.job import describe_inputs
from polyhead_scoring.partition import Limits
from polyhead_scoring.rows import BadRow, merge_kinds, note_kinds
from tests.scoring.texts import BAD_LINES, plain_rows, write_jsonl

ROWS = plain_rows(90)


def limits(tokens: int) -> Limits:
    """As of a model that reads 48 tokens."""
    return Limits(tokens=tokens, max_length=48, bytes_per_token=3.0)


def write_csv(path: Path) -> Path:
    """With line breaks, quotes and commas in cells, and a byte order mark."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_parquet(path: Path) -> Path:
    """Of several row groups, which are larger than some partitions and smaller than others."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=17)
    return path


def read_all(kind: str, file: Path, tokens: int) -> tuple[list[Any], list[dict[str, Any]], int]:
    """Texts and kept columns, and from how many partitions."""
    form = FORMATS[kind]
    partitions, found = form.survey(str(file), "text", limits(tokens))
    schema = form.schema_of([found])
    rows = [form.read(partition, "text", schema) for partition in partitions]
    texts = [text for part in rows for text in part.texts]
    return texts, [row for part in rows for row in part.kept.to_pylist()], len(partitions)


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_row_is_read_once(kind: str, tokens: int, tmp_path: Path) -> None:
    """Texts and other columns come back as they were, in order, from one partition or from ninety."""
    file = tmp_path / f"rows.{kind}"
    {"jsonl": lambda path: write_jsonl(path, ROWS), "csv": write_csv, "parquet": write_parquet}[kind](file)
    texts, kept, partitions = read_all(kind, file, tokens)
    assert [text.decode() if isinstance(text, bytes) else text for text in texts] == [row["text"] for row in ROWS]
    expected: list[dict[str, Any]] = ROWS
    if kind == "csv":
        expected = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in ROWS]
    assert kept == expected
    assert (partitions == 1) == (tokens == 10_000)
    assert (partitions == 90) == (tokens == 1)
    sample = FORMATS[kind].sample(str(file), "text", 7)
    assert [text.decode() if isinstance(text, bytes) else text for text in sample] == [r["text"] for r in ROWS[:7]]


def test_bad_lines_are_rows(tmp_path: Path) -> None:
    """A line that is no object is a row with a reason; blank lines are none; bytes and surrogates stay visible."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join([*BAD_LINES, b'{"id": 1, "text": "last, without line break"}']))
    texts, kept, _ = read_all("jsonl", file, 20)
    assert len(texts) == len(kept) == len(BAD_LINES) + 1
    assert [text.reason[:16] for text in texts if isinstance(text, BadRow)] == ["the line is not ", "the line must be"]
    assert [row["id"] for row in kept] == [*range(100, 108), None, None, 1]
    assert [kept[i]["text"] for i in (2, 3, 4, 5)] == [
        "5", '["a"]', "a lone \\ud800 surrogate", "broken \\udcff byte",
    ]  # fmt: skip


def test_json_columns_have_one_type() -> None:
    """Whole and broken numbers are numbers as long as none changes by it; what is mixed or nested is text."""
    rows: list[dict[str, Any]] = [
        {"a": 1, "b": 1, "c": 2**60, "d": True, "e": 2**70, "f": {"x": 1}, "g": None, "h": 2**60},
        {"a": 2, "b": 0.5, "c": 1, "d": None, "e": 1, "f": "y", "h": 0.5},
    ]
    schemas = []
    for half in (rows, rows[:1]):
        kinds: dict[str, set[str]] = {}
        for row in half:
            note_kinds(kinds, row)
        schemas.append(kinds)
    types = {field.name: str(field.type) for field in merge_kinds(schemas)}
    assert types == {
        "a": "int64", "b": "double", "c": "int64", "d": "bool",
        "e": "string", "f": "string", "g": "string", "h": "string",
    }  # fmt: skip


def test_csv_rows_of_another_width_are_bad_rows(tmp_path: Path) -> None:
    """Such a row has a reason and its neighbours are read; an open quote is an error of the file, with its place."""
    file = tmp_path / "rows.csv"
    file.write_text("id,text\n1,a\n2\n\n3,b,c\n4,\xe9\n", encoding="latin-1")
    texts, kept, _ = read_all("csv", file, 1)
    assert texts[0] == "a"
    assert [text.reason for text in texts[1:3]] == [f"the row has {n} cells, the header names 2" for n in (1, 3)]
    assert [row["id"] for row in kept] == ["1", None, None, "4"]
    assert kept[3]["text"] == "\\udce9"
    file.write_text('id,text\n1,a\n2,"b\n', encoding="utf-8")
    with pytest.raises(InputError, match="behind row 1"):
        FORMATS["csv"].survey(str(file), "text", limits(10))


def test_parquet_text_columns(tmp_path: Path) -> None:
    """Dictionaries, large strings, bytes and nulls are read; a column of numbers is refused before scoring."""
    for column in (
        pyarrow.array(["a", None, "a"]).dictionary_encode(),
        pyarrow.array(["a", None, "a"], pyarrow.large_string()),
        pyarrow.array([b"a", None, b"a"], pyarrow.binary()),
    ):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
        assert read_all("parquet", tmp_path / "rows.parquet", 1)[0] == [b"a", None, b"a"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="'text' must hold text, it is int64"):
        FORMATS["parquet"].survey(str(tmp_path / "rows.parquet"), "text", limits(10))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        FORMATS["parquet"].survey(str(tmp_path / "rows.parquet"), "text", limits(10))
    with pytest.raises(InputError, match=r"differ: \['b'\]"):
        FORMATS["parquet"].schema_of([pyarrow.schema([("a", pyarrow.string()), ("b", t)]) for t in ("int8", "int16")])


def test_folders_and_globs_stand_for_files(tmp_path: Path) -> None:
    """Each file is named once, from the root; hidden ones and notes are left out; mixed kinds are refused."""
    for name in ("b.jsonl", "a.jsonl", "_manifest.json", ".c.jsonl", "deep/d.jsonl", "_run/e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    found = describe_inputs([str(tmp_path), str(tmp_path / "*.jsonl"), f"file://{tmp_path}/deep"])
    names = [file.name.removeprefix(str(tmp_path)) for file in found]
    assert names == ["/a.jsonl", "/b.jsonl", "/deep/d.jsonl", f"file://{tmp_path}/deep/d.jsonl"]
    assert {file.size for file in found} == {3}
    (tmp_path / "f.csv").write_text("text\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"one kind, .*found are \.csv, \.jsonl"):
        describe_inputs([str(tmp_path)])
    with pytest.raises(InputError, match="no such file"):
        describe_inputs([str(tmp_path / "*.parquet")])
