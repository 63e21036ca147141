"""Labels of typed files: every type of Parquet and Arrow gives the labels that CSV gives, or is an error."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from polyhead_training.config import DataConfig, HeadConfig, TrainingConfig, read_config
from polyhead_training.data.corpus import read_corpus
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.fitting.preparation import dry_run
from tests.training.test_label_files import meanings


def meant(folder: Path, column: pyarrow.Array, kind: str, **head: Any) -> tuple[list[Any], str]:
    """What the cells of a column mean in a Parquet file, and the notes."""
    texts = [f"text of row {number}" for number in range(len(column))]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "y": column}), folder / "rows.parquet")
    path = str(folder / "rows.parquet")
    config = HeadConfig(name="y", kind=kind, **head)
    corpus = read_corpus(DataConfig(train=path, validation=path), [config], folder / "scratch")
    return meanings(corpus.train.labels, corpus.schema)[0], "\n".join(corpus.notes)


DAY = datetime.datetime(2024, 1, 31)


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pyarrow.array([Decimal("1.50"), Decimal("2.00"), None]), ["1.5", "2", None]),
        (pyarrow.array([True, False, None]), ["true", "false", None]),
        (pyarrow.array([1.0, 2.0, None]), ["1", "2", None]),
        (pyarrow.array([1, 2, None], pyarrow.uint8()), ["1", "2", None]),
        (pyarrow.array([DAY.date(), DAY.date() + datetime.timedelta(1), None]), ["2024-01-31", "2024-02-01", None]),
        (pyarrow.array([DAY, DAY + datetime.timedelta(1), None]), ["2024-01-31", "2024-02-01", None]),
        (pyarrow.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pyarrow.array(["a", "b", "None"], pyarrow.large_string()), ["a", "b", None]),
        (pyarrow.array([b"a", b"b", None]), ["a", "b", None]),
        (pyarrow.array([["a"], ["b"], []]), ["a", "b", None]),
        (pyarrow.array([{"choices": ["a"]}, {"choices": ["b"]}, None]), ["a", "b", None]),
        (pyarrow.array([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, None]), ["a", "b", None]),
        (pyarrow.array([[("a", True)], [("b", True)], None], pyarrow.map_(pyarrow.string(), pyarrow.bool_())),
         ["a", "b", None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)  # fmt: skip
def test_types_as_single_labels(column: pyarrow.Array, labels: list[Any], tmp_path: Path) -> None:
    """Numbers, truth values, dates, categories, bytes, lists of one and objects."""
    assert meant(tmp_path, column, "single_label")[0] == labels


def test_a_pandas_category_with_a_missing_row(tmp_path: Path) -> None:
    """Its codes are not seen, and the missing row is unknown."""
    frame = pandas.DataFrame({"text": ["one", "two", "three"], "y": pandas.Categorical(["b", None, "a"])})
    frame.to_parquet(tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    head = HeadConfig(name="y", kind="single_label")
    corpus = read_corpus(DataConfig(train=path, validation=path), [head], tmp_path / "scratch")
    assert meanings(corpus.train.labels, corpus.schema) == [["b", None, "a"]]


def test_numbers_of_every_type(tmp_path: Path) -> None:
    """Decimals and whole numbers are numbers of a regression; dates are not."""
    decimals = pyarrow.array([Decimal("1.50"), Decimal("2.00"), None])
    assert meant(tmp_path, decimals, "regression")[0] == [1.5, 2.0, None]
    with pytest.raises(DataError, match="row 1: column 'y': a regression needs finite numbers"):
        meant(tmp_path, pyarrow.array([DAY.date()]), "regression")


def test_sets_of_every_type(tmp_path: Path) -> None:
    """Lists of categories, large lists, lists of fixed size and structs of shares."""
    fixed = pyarrow.array([[0, 1], [1, 1], [0, 0]], pyarrow.list_(pyarrow.int8(), 2))
    assert meant(tmp_path, fixed, "multi_label", positions=["a", "b"])[0] == [["b"], ["a", "b"], []]
    large = pyarrow.array([["a", None], [], None], pyarrow.large_list(pyarrow.string()))
    assert meant(tmp_path, large, "multi_label", labels=["a", "b"])[0] == [["a"], [], None]
    shares = pyarrow.array([{"a": 0.9, "b": 0.1}, {"a": None, "b": 1.0}, None])
    assert meant(tmp_path, shares, "multi_label")[0] == [["a"], ["b"], None]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([["one", "two"]]), pyarrow.array([{"body": "one"}]), pyarrow.array([0.5]), pyarrow.array([7]),
        pyarrow.array([DAY]), pyarrow.array([True]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)  # fmt: skip
def test_a_text_column_of_another_type_is_an_error(column: pyarrow.Array, tmp_path: Path) -> None:
    """Lists, structs, numbers and dates are no texts; one line names row and column."""
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "y": ["a"]}), tmp_path / "rows.parquet")
    head = HeadConfig(name="y", kind="single_label")
    with pytest.raises(DataError, match=r"rows.parquet: row 1: column 'text' must be a string, got"):
        read_corpus(DataConfig(train=str(tmp_path / "rows.parquet")), [head], tmp_path / "scratch")


def test_fields_of_structs_in_parquet(tmp_path: Path) -> None:
    """Text, labels and filters name them with a point."""
    docs = [{"body": f"text {i}", "meta": {"topic": "ab"[i % 2], "lang": "de" if i == 3 else "en"}} for i in range(4)]
    pyarrow.parquet.write_table(pyarrow.table({"doc": docs}), tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    config = DataConfig(train=path, validation=path, text_column="doc.body", where={"doc.meta.lang": "en"})
    head = HeadConfig(name="topic", kind="single_label", column="doc.meta.topic")
    corpus = read_corpus(config, [head], tmp_path / "scratch")
    assert list(corpus.train.texts) == ["text 0", "text 1", "text 2"]
    assert meanings(corpus.train.labels, corpus.schema) == [["a", "b", "a"]]
    template = config.model_copy(update={"text_column": "text", "text_template": "{doc.meta.lang}: {doc.body}"})
    assert list(read_corpus(template, [head], tmp_path / "t").train.texts) == ["en: text 0", "en: text 1", "en: text 2"]
    with pytest.raises(DataError, match=r"has no column 'dok.body', only doc"):
        read_corpus(config.model_copy(update={"text_column": "dok.body"}), [head], tmp_path / "n")


NAMES = {
    "names.txt": "no\nyes\n\n",
    "names.json": '["no", "yes"]',
    "by_id.json": '{"0": "no", "1": "yes"}',
    "by_name.json": '{"no": 0, "yes": 1}',
    "groups.json": '{"no": [0, "none at all"], "yes": ["1"]}',
    "names.csv": "id,name\n0,no\n1,yes\n",
    "bare.csv": "0,no\n1,yes\n",
    "names.tsv": "name\nno\nyes\n",
    "names.jsonl": '{"id": 0, "name": "no"}\n{"id": 1, "name": "yes"}\n',
}


@pytest.mark.parametrize("name", NAMES)
def test_names_come_from_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines, lists, objects and tables; the config that is recorded has the names themselves."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(NAMES[name], encoding="utf-8")
    Path("rows.csv").write_text("text,y\none,1\ntwo,0\nthree,1.0\n", encoding="utf-8")
    Path("c.toml").write_text(
        f'output = "o"\n[data]\ntrain = "rows.csv"\nvalidation = "rows.csv"\n[[heads]]\nname = "y"\n'
        f'kind = "single_label"\nnames = "{name}"\n', encoding="utf-8",
    )  # fmt: skip
    config = read_config(Path("c.toml"))
    names = config.heads[0].names
    assert isinstance(names, dict)
    assert (names["0"], names["1"]) == ("no", "yes")
    corpus = read_corpus(config.data, config.heads, tmp_path / "scratch")
    assert meanings(corpus.train.labels, corpus.schema) == [["yes", "no", "yes"]]
    Path("rows.csv").write_text("text,y\none,1\ntwo,7\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.csv:3: column 'y': heads.y.names has no name for '7'"):
        read_corpus(config.data, config.heads, tmp_path / "again")


def test_names_of_a_config_from_python(tmp_path: Path) -> None:
    """A config that was made in Python, not read from a file, has the content of its files of names."""
    (tmp_path / "names.txt").write_text("no\nyes\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text("text,y\none,1\ntwo,0\n", encoding="utf-8")
    rows = str(tmp_path / "rows.csv")
    config = TrainingConfig.model_validate({
        "output": tmp_path / "out",
        "data": {"train": rows, "validation": rows},
        "model": {"gpt2": {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 300}},
        "heads": [{"name": "y", "kind": "single_label", "names": str(tmp_path / "names.txt")}],
    })  # fmt: skip
    said: list[str] = []
    dry_run(config, said.append)
    assert json.loads(said[0])["heads"][0]["names"] == {"0": "no", "1": "yes"}
    assert "head y: single_label, 2 labels" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", "", "holds no name"),
        ("blank.txt", "a\n\nb\n", "the name of '1' is blank"),
        ("broken.json", "{", "is not JSON"),
        ("number.json", "3", "must hold a list of names or an object"),
        ("nested.json", '{"0": {"name": "a"}}', "the name of '0' must be a text"),
        ("twice.json", '{"a": ["1"], "b": ["1"]}', "'1' has two names, 'a' and 'b'"),
        ("wide.csv", "id,name,more\n0,a,b\n", "must have two columns"),
    ],
)  # fmt: skip
def test_a_file_of_names_that_is_none(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    """One line names the head, the file and what is wrong."""
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "c.toml").write_text(
        f'output = "o"\n[data]\ntrain = "r.csv"\n[[heads]]\nname = "y"\nkind = "single_label"\n'
        f"names = {json.dumps(str(tmp_path / name))}\n", encoding="utf-8",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=f"heads: 'y': names: .*{name}: {message}") as caught:
        read_config(tmp_path / "c.toml")
    assert "\n" not in str(caught.value)
