"""What files of answers look like: the layout of answers, the types of kept columns, and every output format."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from polyhead_rows.answers import answer_fields, answer_table
from polyhead_rows.columns import Kinds, merge_kinds, note_kinds, to_table
from polyhead_rows.errors import TableError
from polyhead_rows.output import GROUP_ROWS, open_output
from polyhead_rows.table_file import open_table

HEADS = [
    {"name": "topic", "kind": "single_label"},
    {"name": "tags", "kind": "multi_label"},
    {"name": "stars", "kind": "regression"},
]
ANSWERS: list[dict[str, Any]] = [
    {
        "heads": {
            "topic": {"kind": "single_label", "labels": ["a", "b"], "scores": [0.75, 0.25]},
            "tags": {"kind": "multi_label", "labels": [], "scores": [], "thresholds": []},
            "stars": {"kind": "regression", "value": 4.5},
        },
        "token_count": 7,
        "truncated": False,
    },
    {"error": "the text is blank"},
]


def test_answers_have_one_layout() -> None:
    """The columns of each head, then of the row; a row with an error has nothing else."""
    table = answer_table(ANSWERS, HEADS, None)
    assert table.to_pylist() == [
        {
            "topic_label": "a", "topic_score": 0.75, "tags_labels": [], "tags_scores": [], "stars_value": 4.5,
            "token_count": 7, "truncated": False, "error": None,
        },
        dict.fromkeys(table.column_names) | {"error": "the text is blank"},
    ]  # fmt: skip
    assert table.schema == pyarrow.schema(answer_fields(HEADS, None))
    assert table.schema.field("topic_score").type == pyarrow.float32()
    assert table.schema.field("token_count").type == pyarrow.int32()


def test_top_k_adds_the_best_few() -> None:
    """Of single_label heads; top_k = 1 does not."""
    table = answer_table(ANSWERS, HEADS[:1], 2, prefix="model_")
    assert table.column_names[:4] == [
        "model_topic_label", "model_topic_score", "model_topic_labels", "model_topic_scores"
    ]  # fmt: skip
    assert table.column_names[-1] == "model_error"
    assert table.column("model_topic_labels").to_pylist() == [["a", "b"], None]
    assert answer_fields(HEADS, 1) == answer_fields(HEADS, None)


def test_answers_whose_columns_collide_are_refused() -> None:
    """Two heads can ask for one column."""
    heads = [{"name": "a", "kind": "single_label"}, {"name": "a", "kind": "multi_label"}]
    with pytest.raises(TableError, match="'a_labels'"):
        answer_fields(heads, 2)
    with pytest.raises(TableError, match="got 'other'"):
        answer_fields([{"name": "a", "kind": "other"}], None)


def test_kept_columns_get_a_type_that_holds_all_values() -> None:
    """Mixed and nested values are JSON text, whole numbers stay exact, lone surrogates are escaped."""
    rows: list[dict[str, Any]] = [
        {"i": 1, "f": 1, "big": 2**60, "b": True, "s": "a", "mixed": 1, "nested": {"a": [1]}, "null": None},
        {"i": 2, "f": 0.5, "big": 1.5, "b": False, "s": "\udc80", "mixed": "x", "new": 2**70},
    ]
    kinds: Kinds = {}
    for row in rows:
        note_kinds(kinds, row)
    table = to_table(rows, merge_kinds([kinds]))
    assert table.to_pydict() == {
        "i": [1, 2], "f": [1.0, 0.5], "big": [str(2**60), "1.5"], "b": [True, False], "s": ["a", "\\udc80"],
        "mixed": ["1", "x"], "nested": ['{"a": [1]}', None], "null": [None, None], "new": [None, str(2**70)],
    }  # fmt: skip
    assert [str(field.type) for field in table.schema][:4] == ["int64", "double", "string", "bool"]


SCHEMA = pyarrow.schema(
    [
        ("s", pyarrow.string()), ("l", pyarrow.list_(pyarrow.float32())), ("b", pyarrow.bool_()),
        ("f", pyarrow.float32()),
        ("at", pyarrow.timestamp("us")), ("d", pyarrow.decimal128(5, 2)), ("raw", pyarrow.binary()),
        ("ns", pyarrow.timestamp("ns")),
    ]
)  # fmt: skip
ROW = {
    "s": 'a "b", \r', "l": [0.5, 1.0], "b": True, "f": float("nan"), "at": datetime.datetime(2020, 1, 2, 3),
    "d": decimal.Decimal("1.50"), "raw": b"\xff", "ns": 1,
}  # fmt: skip


def _table() -> pyarrow.Table:
    return pyarrow.Table.from_pylist([ROW, dict.fromkeys(ROW)], schema=SCHEMA)


def test_csv_has_json_lists_and_empty_nulls(tmp_path: Path) -> None:
    """Dates and decimals are text, bytes are base64, what is no number is empty."""
    with open_output(tmp_path / "a.csv", SCHEMA) as output:
        output.write(_table())
    nanosecond = "1970-01-01 00:00:00.000000001"
    assert (tmp_path / "a.csv").read_bytes().decode() == (
        f's,l,b,f,at,d,raw,ns\n"a ""b"", \r","[0.5, 1.0]",true,,2020-01-02 03:00:00,1.50,/w==,{nanosecond}\n,,,,,,,\n'
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.json"])
def test_json_is_always_valid(name: str, tmp_path: Path) -> None:
    """NaN is null."""
    with open_output(tmp_path / name, SCHEMA) as output:
        output.write(_table())
        output.write(_table())
    content = (tmp_path / name).read_bytes()
    text = (gzip.decompress(content) if name.endswith("gz") else content).decode()
    rows = json.loads(text) if name == "a.json" else [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 4
    assert rows[0] == {
        "s": 'a "b", \r', "l": [0.5, 1.0], "b": True, "f": None, "at": "2020-01-02 03:00:00", "d": "1.50",
        "raw": base64.b64encode(b"\xff").decode(), "ns": "1970-01-01 00:00:00.000000001",
    }  # fmt: skip
    assert rows[1] == dict.fromkeys(ROW)


@given(value=st.floats(width=32, allow_nan=False))
@settings(deadline=None)
def test_text_formats_have_the_shortest_decimal_of_a_float32(
    value: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A score of 0.9 is 0.9, and every number is read back as the same float32."""
    folder = tmp_path_factory.mktemp("floats")
    table = pyarrow.table({"x": pyarrow.array([value, 0.9], pyarrow.float32())})
    with open_output(folder / "a.csv", table.schema) as output:
        output.write(table)
    _, written, short = (folder / "a.csv").read_text().split("\n")[:3]
    assert short == "0.9"
    if math.isfinite(value):
        assert numpy.float32(written) == numpy.float32(value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.arrow", "a.csv.zst"])
def test_a_table_without_rows_is_a_file(name: str, tmp_path: Path) -> None:
    """It has its columns where the format has any."""
    with open_output(tmp_path / name, SCHEMA):
        pass
    table = open_table(str(tmp_path / name))
    assert list(table.rows()) == []
    assert table.columns in (SCHEMA.names, None)


def test_parquet_gathers_small_tables_into_row_groups(tmp_path: Path) -> None:
    """Tables of any size come; row groups are large, so that readers are fast."""
    schema = pyarrow.schema([("n", pyarrow.int64())])
    with open_output(tmp_path / "a.parquet", schema) as output:
        for start in range(0, GROUP_ROWS + 2000, 1000):
            output.write(pyarrow.table({"n": range(start, start + 1000)}))
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 2
    assert file.read().column("n").to_pylist() == list(range(len(file.read())))


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.csv.xz", "a.parquet", "a.arrow"])
def test_a_full_disk_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    """Whether it shows while rows are written or at the end."""
    (tmp_path / name).symlink_to("/dev/full")

    def write() -> None:
        with open_output(tmp_path / name, SCHEMA) as output:
            for _ in range(500):
                output.write(_table())

    with pytest.raises(TableError, match=r"cannot be written.*[Nn]o space left"):
        write()


def test_an_output_is_refused_with_its_reason(tmp_path: Path) -> None:
    """Unknown formats, folders that are not there, tables of another kind."""
    for name, said in [("a.xlsx", "must end in one of"), ("a.parquet.gz", "compressed inside"),
                       ("none/a.csv", "No such file")]:  # fmt: skip
        with pytest.raises(TableError, match=said):
            open_output(tmp_path / name, SCHEMA)
    with open_output(tmp_path / "a.csv", SCHEMA) as output, pytest.raises(TableError, match="cannot be written"):
        output.write(pyarrow.table({"other": [1]}))
