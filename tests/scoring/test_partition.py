"""Partitions: each row is in one, in order, none is too large, and a file reads the same however it is cut."""

from __future__ import annotations

import bz2
import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead_rows.errors import TableError
from polyhead_rows.table_file import BadText, ReadOptions, Start
from polyhead_scoring import ScoringError, partition
from polyhead_scoring.job import Job, describe_file
from polyhead_scoring.partition import (
    PARTITION_BYTES,
    Limits,
    PartReader,
    RowSize,
    bytes_per_token,
    cut,
    kept_schema,
    survey,
)
from tests.scoring.texts import BAD_LINES, plain_rows, write_jsonl
from tests.tiny import tiny_tokenizer

ROWS = plain_rows(90)


def job_over(*files: Path, **fields: Any) -> Job:
    """A job over some files."""
    given_fields: dict[str, Any] = {
        "inputs": tuple(describe_file(str(file)) for file in files), "read": ReadOptions(), "text_column": "text",
        "keep": None, "prefix": "", "top_k": None, "threshold": None, "partition_tokens": 100, "answers_from": {},
    }  # fmt: skip
    return Job(**(given_fields | fields))


def limits(tokens: int) -> Limits:
    """As of a model that reads 48 tokens."""
    return Limits(tokens=tokens, max_length=48, bytes_per_token=3.0)


@given(st.lists(st.integers(0, 400)), st.integers(1, 200), st.integers(1, 60))
def test_rows_are_cut_by_tokens(text_bytes: list[int], tokens: int, max_length: int) -> None:
    """Whatever the lengths, each row is in one partition, in order, and only a row alone exceeds the limit."""
    most = Limits(tokens=tokens, max_length=max_length, bytes_per_token=2.0)
    rows = [RowSize(size, size + 10, Start(place + 1)) for place, size in enumerate(text_bytes)]
    partitions = list(cut("file", rows, most))
    assert [row for p in partitions for row in range(p.first_row, p.first_row + p.rows)] == list(range(len(rows)))
    assert [p.start.number for p in partitions] == [p.first_row + 1 for p in partitions]
    for one in partitions:
        inside = rows[one.first_row : one.first_row + one.rows]
        assert one.tokens == sum(most.estimate(row.text_bytes) for row in inside)
        assert one.tokens <= tokens or one.rows == 1
    for before, after in pairwise(partitions):
        assert before.tokens + most.estimate(rows[after.first_row].text_bytes) > tokens


def test_large_rows_are_cut_by_bytes() -> None:
    """If columns beside the text are large, partitions hold few rows."""
    rows = [RowSize(8, PARTITION_BYTES // 2, Start(i + 1)) for i in range(5)]
    assert [p.rows for p in cut("file", rows, Limits(tokens=1000, max_length=48))] == [2, 2, 1]


def test_bytes_per_token_of_a_sample(tmp_path: Path) -> None:
    """It is the median of the first texts; without texts it is that of English."""
    tokenizer = tiny_tokenizer()
    job = job_over(write_jsonl(tmp_path / "empty.jsonl", []), write_jsonl(tmp_path / "rows.jsonl", ROWS))
    assert 1 < bytes_per_token(job, tokenizer) < 5
    (tmp_path / "empty.csv").touch()  # has no columns
    assert bytes_per_token(job_over(tmp_path / "empty.csv"), tokenizer) == 4.0
    assert bytes_per_token(job_over(write_jsonl(tmp_path / "bad.jsonl", [{"text": None}])), tokenizer) == 4.0


def write_rows(path: Path) -> Path:
    """The rows in the format that the name says; cells have line breaks, quotes and commas."""
    if path.suffix == ".parquet":  # of row groups that are larger than some partitions and smaller than others
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=17)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        write_jsonl(path.with_suffix(""), ROWS) if path.suffix == ".bz2" else write_jsonl(path, ROWS)
        if path.suffix == ".bz2":
            path.write_bytes(bz2.compress(path.with_suffix("").read_bytes()))
    return path


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.bz2"])
def test_every_row_is_read_once(name: str, tokens: int, tmp_path: Path) -> None:
    """Texts and other columns come back as they were, in order, from one partition or from ninety."""
    job = job_over(write_rows(tmp_path / name))
    partitions, found = survey(job.inputs[0], job, limits(tokens))
    kept = kept_schema(job, [found])
    reader = PartReader(job, kept)
    parts = [reader.read(one) for one in partitions]
    assert [text for part in parts for text in part.texts] == [row["text"] for row in ROWS]
    expected: list[dict[str, Any]] = ROWS
    if name == "rows.csv":
        expected = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in ROWS]
    assert [row for part in parts for row in part.kept.to_pylist()] == expected
    assert (len(parts) == 1) == (tokens == 10_000)
    assert (len(parts) == 90) == (tokens == 1)
    assert reader.read(partitions[-1]).texts == parts[-1].texts
    assert reader.read(partitions[0]).texts == parts[0].texts


def test_a_file_that_cannot_seek_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker keeps a compressed file open, so that many partitions in order do not read it again and again."""
    job = job_over(write_rows(tmp_path / "rows.jsonl.bz2"))
    partitions, found = survey(job.inputs[0], job, limits(20))
    opened: list[str] = []

    def open_table(name: str, options: ReadOptions) -> Any:
        opened.append(name)
        return real(name, options)

    real = partition.open_table
    monkeypatch.setattr(partition, "open_table", open_table)
    reader = PartReader(job, kept_schema(job, [found]))
    begun: list[Any] = []
    for one in partitions[::2]:
        reader.read(one)
        assert reader._open is not None
        begun.append(reader._open[1])
    assert len(partitions) > 10
    assert (len(opened), len({id(rows) for rows in begun})) == (1, 1)


def test_bad_lines_are_rows(tmp_path: Path) -> None:
    """A line that is no object is a row with a reason; its neighbours are read, and blank lines are no rows."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join([*BAD_LINES, b'{"id": 1, "text": "last, without line break"}']))
    job = job_over(file)
    partitions, found = survey(job.inputs[0], job, limits(20))
    reader = PartReader(job, kept_schema(job, [found]))
    parts = [reader.read(one) for one in partitions]
    texts = [text for part in parts for text in part.texts]
    assert [isinstance(text, BadText) for text in texts] == [True] * 5 + [False] * 2 + [True] * 3 + [False]
    kept = [row for part in parts for row in part.kept.to_pylist()]
    assert [row["id"] for row in kept] == [100, 101, 102, 103, 104, 106, 107, None, None, None, 1]
    assert [kept[i]["text"] for i in (2, 3, 4)] == ["5", '["a"]', "a lone \\ud800 surrogate"]


def test_files_must_agree_in_their_columns(tmp_path: Path) -> None:
    """Parquet files with other types, Parquet beside text, and columns that are nowhere are refused by name."""
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "n": pyarrow.array([1], "int8")}), a)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "n": pyarrow.array([1], "int16")}), b)
    text = write_jsonl(tmp_path / "c.jsonl", [{"text": "x", "id": 1}])
    found = {
        file.name: survey(describe_file(str(file)), job_over(a, b, text), limits(10))[1] for file in (a, b, text)
    }  # fmt: skip
    job = job_over(text)
    with pytest.raises(ScoringError, match=r"differ: \['n'\]"):
        kept_schema(job, [found["a.parquet"], found["b.parquet"]])
    with pytest.raises(ScoringError, match="mixes Parquet"):
        kept_schema(job, [found["a.parquet"], found["c.jsonl"]])
    for fields in ({"text_column": "review"}, {"keep": ("id", "review")}):
        with pytest.raises(ScoringError, match="column 'review' is in no input file; there are text, id"):
            kept_schema(job_over(text, **fields), [found["c.jsonl"]])
    assert kept_schema(job_over(text, keep=("id",)), [found["c.jsonl"]]).names == ["id"]
    with pytest.raises(TableError, match="no column 'review'"):
        survey(describe_file(str(a)), job_over(a, text_column="review"), limits(10))


def test_parquet_text_columns(tmp_path: Path) -> None:
    """Dictionaries, large strings, bytes and nulls are read; a number is a row without a text."""
    file = tmp_path / "rows.parquet"
    for column in (
        pyarrow.array(["a", None, "a"]).dictionary_encode(),
        pyarrow.array(["a", None, "a"], pyarrow.large_string()),
        pyarrow.array([b"a", None, b"a"], pyarrow.binary()),
    ):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), file)
        job = job_over(file)
        (one,), found = survey(job.inputs[0], job, limits(10))
        part = PartReader(job, kept_schema(job, [found])).read(one)
        assert part.texts[::2] == ["a", "a"]
        assert isinstance(part.texts[1], BadText)
        assert part.kept.schema.field("text").type == column.type


def test_a_file_that_shrank(tmp_path: Path) -> None:
    """A partition whose rows are no longer there is an error that says so."""
    job = job_over(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    (one,), found = survey(job.inputs[0], job, limits(10_000))
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:10])
    with pytest.raises(ScoringError, match="has 10 rows in a place that had 90, or other columns: the file changed"):
        PartReader(job, kept_schema(job, [found])).read(one)
