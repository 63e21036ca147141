"""Rows of every format become the same texts and label matrices; what is wrong is named by place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from polyhead.errors import PolyheadError, SchemaError
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.cells import CellReader
from polyhead_training.data.corpus import read_corpus
from polyhead_training.errors import DataError

ROWS = [
    {"text": "one", "topic": "NA", "tags": ["x", "y"], "stars": 1.0},
    {"text": "two", "topic": "null", "tags": [], "stars": 2.5},
    {"text": "three, with a comma", "topic": "3", "tags": ["y"], "stars": -1.0},
]
HEADS = [
    HeadConfig(name="topic", kind="single_label", missing=[]),
    HeadConfig(name="tags", kind="multi_label", separator=";"),
    HeadConfig(name="stars", kind="regression"),
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Lists joined by semicolons."""
    pandas.DataFrame([row | {"tags": ";".join(row["tags"])} for row in rows]).to_csv(path, index=False)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One row per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Lists as lists."""
    pandas.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize(("suffix", "write"), [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)])
def test_formats_agree(tmp_path: Path, suffix: str, write: Callable[..., Path]) -> None:
    """CSV, JSONL and Parquet give the same texts, schema and labels; with ``missing = []`` "NA" is a label."""
    path = str(write(tmp_path / f"rows.{suffix}", ROWS))
    corpus = read_corpus(DataConfig(train=path, validation=path), HEADS, tmp_path / "scratch")
    assert list(corpus.train.texts) == [row["text"] for row in ROWS]
    assert corpus.schema["topic"].labels == ("3", "NA", "null")
    assert corpus.schema["tags"].labels == ("x", "y")
    np.testing.assert_array_equal(corpus.train.labels, [[1, 1, 1, 1], [2, 0, 0, 2.5], [0, 0, 1, -1]])


def test_several_files_by_glob(tmp_path: Path) -> None:
    """A glob reads all files, in the order of their names."""
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "b.jsonl", ROWS[1:])
    corpus = read_corpus(
        DataConfig(train=str(tmp_path / "*.jsonl"), validation=str(tmp_path / "b.jsonl")), HEADS, tmp_path / "scratch"
    )
    assert list(corpus.train.texts) == [row["text"] for row in ROWS]


def test_a_tenth_is_held_out_by_text(tmp_path: Path) -> None:
    """Without a validation file, equal texts stand on one side and about a tenth is held out, stably as data grows."""
    rows = [{"text": f"text {i % 200}", "topic": "ab"[i % 2]} for i in range(400)]
    heads = [HeadConfig(name="topic", kind="single_label")]
    corpus = read_corpus(DataConfig(train=str(write_jsonl(tmp_path / "r.jsonl", rows))), heads, tmp_path / "scratch")
    assert not set(corpus.train.texts) & set(corpus.validation.texts)
    assert 20 <= len(corpus.validation) <= 60
    more = rows + [{"text": f"new {i}", "topic": "a"} for i in range(100)]
    grown = read_corpus(DataConfig(train=str(write_jsonl(tmp_path / "r.jsonl", more))), heads, tmp_path / "scratch")
    assert set(corpus.validation.texts) <= set(grown.validation.texts)


def test_blank_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    """A row with a blank text is left out with its labels."""
    rows = [ROWS[0], ROWS[1] | {"text": "  "}, ROWS[2] | {"text": ""}, ROWS[2]]
    path = str(write_jsonl(tmp_path / "r.jsonl", rows))
    corpus = read_corpus(DataConfig(train=path, validation=path), HEADS, tmp_path / "scratch")
    assert (len(corpus.train), corpus.train.dropped) == (2, 2)
    assert corpus.train.labels[1, 0] == corpus.schema["topic"].index_of["3"]


def test_missing_labels_are_unknown(tmp_path: Path) -> None:
    """A label that is not given is NaN for that head alone."""
    rows = [*ROWS, {"text": "four", "topic": None, "tags": None, "stars": None}]
    path = str(write_jsonl(tmp_path / "r.jsonl", rows))
    labels = read_corpus(DataConfig(train=path, validation=path), HEADS, tmp_path / "scratch").train.labels
    assert np.isnan(labels[3]).all()
    assert not np.isnan(labels[:3]).any()


@pytest.mark.parametrize(
    ("change", "heads", "message"),
    [
        ({}, [HeadConfig(name="colour", kind="single_label")], "no column 'colour', only text, topic, tags, stars"),
        ({}, [HeadConfig(name="topic", kind="regression", missing=[])],
         ":1: column 'topic': a regression needs finite numbers"),
        ({}, [HeadConfig(name="topic", kind="single_label", labels=["3", "NA"], missing=[])],
         ":2: column 'topic': label 'null' is not in the schema of head 'topic'; allowed are 3, NA"),
        ({}, [HeadConfig(name="topic", kind="single_label", labels=[])], "needs at least 2 labels"),
        ({"topic": None}, [HeadConfig(name="topic", kind="single_label")], "holds no label for head 'topic'"),
        ({"text": ""}, HEADS, "has no row with a text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], heads: list[HeadConfig], message: str) -> None:
    """One line with the file, the row, the column and what is allowed."""
    path = str(write_jsonl(tmp_path / "r.jsonl", [row | change for row in ROWS]))
    with pytest.raises(PolyheadError, match=message) as caught:
        read_corpus(DataConfig(train=path, validation=path), heads, tmp_path / "scratch")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError | SchemaError)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("broken.parquet", b"PAR1nonsense", "cannot be read as Parquet"),
        ("broken.jsonl", b'{"text": \n', "broken.jsonl:1: is not JSON"),
        ("empty.csv", b"", "is empty; the first line must name the columns"),
        ("ragged.csv", b"text,topic,tags,stars\none,a,b,1,2\ntwo,b,c\n", "ragged.csv:2: "),
        ("list.jsonl", b"[1]\n", "list.jsonl:1: "),
        ("rows.xlsx", b"x", "save its sheet as CSV"),
        ("rows.docx", b"x", "must end in one of .csv, .tsv, .jsonl"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """Files that are missing, damaged or of another kind."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_corpus(DataConfig(train=str(tmp_path / name)), HEADS, tmp_path / "scratch")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_the_same_in_every_format(tmp_path: Path) -> None:
    """Dates stay text, numbers and truth values become it, nulls in a list are none, bytes are UTF-8."""
    rows = [{"text": "one", "topic": "2024-01-01", "tags": ["a", None]}, {"text": "two", "topic": 7, "tags": [True]}]
    corpus = read_corpus(*files(write_jsonl(tmp_path / "r.jsonl", rows)), tmp_path / "scratch")
    assert corpus.schema["topic"].labels == ("2024-01-01", "7")
    assert corpus.schema["tags"].labels == ("a", "true")
    frame = pandas.DataFrame({"text": ["zwölf".encode(), b"two"], "topic": [b"a", b"b"], "tags": [[b"x"], [b"y"]]})
    frame.to_parquet(tmp_path / "r.parquet")
    corpus = read_corpus(*files(tmp_path / "r.parquet"), tmp_path / "scratch")
    assert list(corpus.train.texts) == ["zwölf", "two"]
    assert [head.labels for head in corpus.schema] == [("a", "b"), ("x", "y")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_numbers_and_truth_values_are_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    """A whole number is "1" even in a column of floats, NaN is missing; also in where, upsample and split_column."""
    frame = pandas.DataFrame({"text": ["one", "two", "three", None], "year": [1, 2, 3, 4], "topic": [1.0, None, 2, 2]})
    frame["flag"] = [True, False, True, True]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":  # what stands there is text and stays as it is
        text = frame.to_csv(index=False).replace(".0", "").replace("True", "true").replace("False", "false")
        path.write_text(text, encoding="utf-8")
    elif suffix == "jsonl":
        write_jsonl(path, frame.to_dict("records"))
        assert "NaN" in path.read_text(encoding="utf-8")
    else:
        frame.to_parquet(path)
    heads = [HeadConfig(name=name, kind="single_label") for name in ("year", "topic", "flag")]
    upsample = [{"column": "topic", "values": ["1"], "times": 2}]
    config = DataConfig(
        train=str(path), validation=str(path), where={"year": ["1", "2", "3"], "flag": ["true", "false"]},
        upsample=upsample, split_column="topic", bad_rows="skip",
    )  # fmt: skip
    corpus = read_corpus(config, heads, tmp_path / "scratch")
    assert [head.labels for head in corpus.schema] == [("1", "2", "3"), ("1", "2"), ("false", "true")]
    assert list(corpus.train.texts) == ["one", "one", "two", "three"]
    np.testing.assert_array_equal(corpus.train.labels[:, 1], [0, 0, np.nan, 1])


def test_nan_is_missing(tmp_path: Path) -> None:
    """In a text, a regression, a cell of labels and among labels."""
    nan = float("nan")
    rows = [
        {"text": "one", "topic": "a", "tags": ["x", nan], "stars": nan},
        {"text": "two", "topic": nan, "tags": nan, "stars": 1.5},
        {"text": nan, "topic": "b", "tags": ["y"], "stars": 1},
    ]
    path = str(write_jsonl(tmp_path / "r.jsonl", rows))
    topic = HEADS[0].model_copy(update={"labels": ["a", "b"]})
    config = DataConfig(train=path, validation=path, bad_rows="skip")
    corpus = read_corpus(config, [topic, *HEADS[1:]], tmp_path / "scratch")
    assert (list(corpus.train.texts), corpus.train.bad) == (["one", "two"], 1)
    assert corpus.schema["tags"].labels == ("x",)
    np.testing.assert_array_equal(corpus.train.labels, [[0, 1, np.nan], [np.nan, np.nan, 1.5]])


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (' ["x", "y"]', ["x", "y"]),
        ("['x', \"it's\"]", ["x", "it's"]),
        ("[1, 2.0]", ["1", "2"]),
        ("['x' 'y']", ["x", "y"]),
        ("x; [y]", ["x", "[y]"]),
    ],
)
def test_lists_in_text(cell: str, labels: list[str]) -> None:
    """JSON's, Python's and NumPy's lists are read; a bracket behind the beginning is a letter."""
    assert CellReader(HEADS[1]).read(cell, "row 1") == labels


@pytest.mark.parametrize("cell", ["[x]; y", "[['x']]", pytest.param("[" * 100_000, id="deep")])
def test_a_bracket_that_begins_no_list_is_an_error(cell: str) -> None:
    """It names row and column, because its parts would be labels that nobody meant."""
    with pytest.raises(DataError, match="row 1: column 'tags'"):
        CellReader(HEADS[1]).read(cell, "row 1")


@pytest.mark.parametrize("value", [10**400, 1e39, float("inf"), "-1e39"])
def test_a_number_must_fit_float32(value: Any) -> None:
    """What would be infinite in the file of labels names its place."""
    with pytest.raises(DataError, match="row 1: column 'stars': a regression needs finite numbers in float32's range"):
        CellReader(HEADS[2]).read(value, "row 1")


@pytest.mark.parametrize(
    ("column", "value"),
    [("tags", 3), ("tags", {"a": 3}), ("topic", ["a", "b"]), ("tags", [["a"]]), ("topic", "\ud800")],
)
def test_what_is_no_label_is_named(tmp_path: Path, column: str, value: Any) -> None:
    """A cell of the wrong kind names its row and column."""
    rows = [
        {"text": "one", "topic": "a", "tags": ["x"]},
        {"text": "two", "topic": "b", "tags": ["y"]} | {column: value},
    ]
    with pytest.raises(DataError, match=f"r.jsonl:2: column '{column}'"):
        read_corpus(*files(write_jsonl(tmp_path / "r.jsonl", rows)), tmp_path / "scratch")


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    """A file that exists under that very name is no glob."""
    corpus = read_corpus(*files(write_jsonl(tmp_path / "rows [1].jsonl", ROWS)), tmp_path / "scratch")
    assert len(corpus.train) == 3


def files(path: Path) -> tuple[DataConfig, list[HeadConfig]]:
    """One file as training and validation rows, for topic and tags."""
    return DataConfig(train=str(path), validation=str(path)), HEADS[:2]
