"""Rows come from every kind of file alike, one at a time, and never with more in memory than a batch."""

from __future__ import annotations

import csv
import gzip
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.schema import HeadKind
from polyhead_rows.table_file import ReadOptions
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data import staging
from polyhead_training.data.corpus import read_corpus
from polyhead_training.data.description import describe_corpus
from polyhead_training.data.first_rows import check_texts
from polyhead_training.data.sources import open_files, open_hub
from polyhead_training.data.staging import write_rows
from polyhead_training.errors import DataError

ROWS = [{"text": "one", "tags": ["x", "y"], "stars": 1.0}, {"text": "zwölf", "tags": [], "stars": None}]


def write_stream(path: Path, table: pyarrow.Table) -> None:
    """Arrow's stream format."""
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_file(path: Path, table: pyarrow.Table) -> None:
    """Arrow's file format."""
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_jsonl(path: Path, table: pyarrow.Table) -> None:
    """One row per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")


WRITERS: list[tuple[str, Callable[[Path, pyarrow.Table], Any]]] = [
    ("stream.arrow", write_stream),
    ("file.arrow", write_file),
    ("zstd.feather", lambda path, table: pyarrow.feather.write_feather(table, str(path), compression="zstd")),
    ("rows.parquet", lambda path, table: pyarrow.parquet.write_table(table, path)),
    ("rows.jsonl", write_jsonl),
]


def read(*patterns: Path) -> list[dict[str, Any]]:
    """All rows of all files."""
    sources = open_files([str(pattern) for pattern in patterns], ReadOptions())
    return [row.fields or {} for source in sources for row in source.rows]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_formats_agree(tmp_path: Path, name: str, write: Callable[[Path, pyarrow.Table], Any]) -> None:
    """Arrow's file and stream formats, Feather, Parquet and JSONL give the same rows."""
    write(tmp_path / name, pyarrow.Table.from_pylist(ROWS))
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize(("name", "write"), WRITERS[:-1])
def test_class_labels_come_by_name(tmp_path: Path, name: str, write: Callable[[Path, pyarrow.Table], Any]) -> None:
    """Files that `datasets` wrote hold indices and, in their schema, the names; also in lists, and -1 is no label."""
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"a": names, "b": datasets.List(names)})
    rows = {"a": [1, -1, None], "b": [[0, 1], [], None]}
    write(tmp_path / name, datasets.Dataset.from_dict(rows, features=features).data.table)
    assert read(tmp_path / name) == [{"a": "yes", "b": ["no", "yes"]}, {"a": None, "b": []}, {"a": None, "b": None}]


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)] * 2),
        min_size=1,
        max_size=5,
    )
)
def test_csv_cells_are_what_was_written(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]) -> None:
    """Any text, with quotes, line breaks, NA and digits, is read as it was written."""
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *cells])
    assert read(path) == [{"a": a, "b": b} for a, b in cells]


def test_csv_from_a_spreadsheet(tmp_path: Path) -> None:
    """A byte order mark is no part of the first column's name, and blank lines are no rows; long cells are read."""
    (tmp_path / "rows.csv").write_text(f"\ufefftext,n\n\none,007\n{'x' * 200_000},NA\n\n", encoding="utf-8")
    assert read(tmp_path / "rows.csv") == [{"text": "one", "n": "007"}, {"text": "x" * 200_000, "n": "NA"}]


def refused(path: Path, content: str, **data: Any) -> str:
    """What a corpus of this file is refused with."""
    path.write_text(content, encoding="utf-8")
    heads = [HeadConfig(name="n", kind=HeadKind.REGRESSION)]
    with pytest.raises(DataError) as caught:
        read_corpus(DataConfig(train=str(path), **data), heads, path.parent / "scratch")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path.parent}/")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,n\none,1\ntwo\n", "rows.csv:3: "),
        ("text,n\none,1\ntwo,2,3\n", "rows.csv:3: "),
        ('text,n\n"one,1\n', "rows.csv:2: "),
        ("text,n,text\none,1,2\n", "rows.csv: several columns are named 'text'; rename all but one"),
        ("n\n1\n", "rows.csv: has no column 'text', only n"),
        ("text;n\none;1\n", "rows.csv: has no column 'text', only text;n; the first line has one column"),
    ],
)
def test_a_broken_csv_is_named(tmp_path: Path, content: str, message: str) -> None:
    """Fields too many or too few, an open quote, and a doubled or missing column are errors, not guesses."""
    assert refused(tmp_path / "rows.csv", content).startswith(message)


def test_a_doubled_column_that_nobody_needs(tmp_path: Path) -> None:
    """It is no reason to read more than the first row before training."""
    path = tmp_path / "rows.csv"
    path.write_text("text,n,n\none,1,2\ntwo\n", encoding="utf-8")
    check_texts(str(path), DataConfig(train=str(path)))
    path.write_text("text,text,n\none,1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.csv: several columns are named 'text'"):
        check_texts(str(path), DataConfig(train=str(path)))


BAD = [{"text": "one", "n": 1}, {"text": 7, "n": 2}, {"n": 3}, {"text": "two", "n": "x"}, {"text": "", "n": 1}]


def test_training_stops_at_a_bad_row_and_counts_them_all(tmp_path: Path) -> None:
    """A number for a text, no text, a label that is none: the first is named, with what to do; blank texts are fine."""
    lines = "".join(json.dumps(row) + "\n" for row in BAD)
    assert refused(tmp_path / "rows.jsonl", lines) == (
        "rows.jsonl:2: column 'text' must be a string, got a number. Of 5 rows, 3 cannot be used: correct them, or "
        'leave them out with bad_rows = "skip"'
    )


def test_counting_bad_rows_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of any size is not read to its end for it."""
    monkeypatch.setattr(staging, "ROWS_TO_COUNT", 10)
    message = refused(tmp_path / "rows.jsonl", '{"text": 7, "n": 1}\n' * 100)
    assert "At least 11 of the first 11 rows cannot be used" in message


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_bad_rows_may_be_skipped(tmp_path: Path, suffix: str) -> None:
    """They are left out, counted and said, like blank texts."""
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in BAD) + "[\n", encoding="utf-8")
    else:
        rows = {"text": ["one", None, None, "two", "", b"\xff"], "n": ["1", "2", "3", "x", "1", "1"]}
        rows["text"] = [text.encode() if isinstance(text, str) else text for text in rows["text"]]
        pyarrow.parquet.write_table(pyarrow.table(rows), path)
    config = DataConfig(train=str(path), validation=str(path), bad_rows="skip")
    corpus = read_corpus(config, [HeadConfig(name="n", kind=HeadKind.REGRESSION)], tmp_path / "scratch")
    assert (list(corpus.train.texts), corpus.train.bad, corpus.train.dropped) == (["one"], 4, 1)
    expected = 'train: 1 rows, 1 more dropped because their text is blank, 4 bad rows left out by bad_rows = "skip"'
    assert describe_corpus(corpus)[0] == expected


def test_a_semicolon_file_in_an_old_encoding_is_read(tmp_path: Path) -> None:
    """The keys of [data] say how; without them the message says which to set."""
    path = tmp_path / "rows.csv"
    path.write_bytes("caf\u00e9;1\n\u00fcber;2\n".encode("cp1252"))
    config = DataConfig(
        train=str(path), validation=str(path), delimiter=";", encoding="cp1252", header=False, columns=("text", "n")
    )
    corpus = read_corpus(config, [HeadConfig(name="n", kind=HeadKind.REGRESSION)], tmp_path / "scratch")
    assert list(corpus.train.texts) == ["caf\u00e9", "\u00fcber"]


def test_several_patterns(tmp_path: Path) -> None:
    """Paths and globs go together in a list; a file that two of them match is read once."""
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    assert [row["text"] for row in read(tmp_path / "c.jsonl", tmp_path / "*.jsonl")] == ["c", "a", "b"]


def test_globs_pass_folders_over(tmp_path: Path) -> None:
    """A folder of a matching name is no file."""
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n\n{"text": "c"}\n \n', encoding="utf-8")
    assert [row["text"] for row in read(tmp_path / "*.jsonl")] == ["b", "c"]  # blank lines are no rows
    with pytest.raises(DataError, match="the folder has no table"):
        read(tmp_path / "a.*")


def test_a_full_disk_is_one_line() -> None:
    """It says how to take another folder."""
    with pytest.raises(DataError, match=r"rows cannot be written .*set TMPDIR to another folder"):
        write_rows(Path("/nowhere/n.arrow"), iter(()), pyarrow.schema([("n", pyarrow.int64())]))


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    """A CSV beside JSON lines, one of them compressed."""
    (tmp_path / "a.csv").write_text("text\none\n", encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n'))
    assert read(tmp_path / "*") == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(("config", "offline"), [(None, False), ("default", False), (None, True)])
def test_a_hub_data_set_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, offline: bool
) -> None:
    """The known splits of a data set come with label names; only without network does the hub's cache take part."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=["no", "yes"])})
    for split, topic in (("train", 1), ("test", 0)):
        rows = datasets.Dataset.from_dict({"text": [split], "topic": [topic]}, features=features)
        (tmp_path / "hub").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(rows.data.table, tmp_path / "hub" / f"{split}.parquet")
    tables = open_hub(str(tmp_path / "hub"), config)
    assert {split: [row.fields for row in table.rows] for split, table in tables.items()} == {
        "train": [{"text": "train", "topic": "yes"}],
        "test": [{"text": "test", "topic": "no"}],
    }
    assert bool(list((tmp_path / "cache").rglob("*.arrow"))) == offline


def test_a_hub_data_set_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come as they are where the types of the columns are written nowhere."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "one", "tags": ["x"]}) + "\n", encoding="utf-8")
    assert [row.fields for row in open_hub(str(tmp_path), None)["train"].rows] == [{"text": "one", "tags": ["x"]}]


def test_a_corpus_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own test split is taken, and validation, which it lacks, is held out of train."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for split, count in (("train", 100), ("test", 5)):
        lines = [json.dumps({"text": f"{split} {n}", "topic": "ab"[n % 2]}) + "\n" for n in range(count)]
        (tmp_path / "hub").mkdir(exist_ok=True)
        (tmp_path / "hub" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    config = DataConfig(hub=str(tmp_path / "hub"), validation_share=0.2)
    corpus = read_corpus(config, [HeadConfig(name="topic", kind="single_label")], tmp_path / "scratch")
    assert corpus.test is not None
    assert list(corpus.test.texts) == [f"test {n}" for n in range(5)]
    assert 5 < len(corpus.validation) < 40
    assert sorted([*corpus.train.texts, *corpus.validation.texts]) == sorted(f"train {n}" for n in range(100))


def test_a_hub_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line with its name."""
    with pytest.raises(DataError, match=r"hub data set .*nothing.*: cannot be loaded") as caught:
        open_hub(str(tmp_path / "nothing"), None)
    assert "\n" not in str(caught.value)


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """The first row comes although a later one is broken; that one says so itself."""
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\nnonsense\n', encoding="utf-8")
    (source,) = open_files(str(tmp_path / "rows.jsonl"), ReadOptions())
    assert next(source.rows).fields == {"text": "one"}
    assert next(source.rows).fields is None


def test_written_rows_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of any number of rows are one data set; writing to the same path again leaves the older one as it was."""
    monkeypatch.setattr(staging, "ROWS_PER_BATCH", 2)
    schema = pyarrow.schema([("n", pyarrow.int64())])
    older = write_rows(tmp_path / "n.arrow", ({"n": n} for n in range(5)), schema)
    newer = write_rows(tmp_path / "n.arrow", iter(()), schema)
    assert (list(older["n"]), len(newer)) == ([0, 1, 2, 3, 4], 0)
    assert [path.name for path in tmp_path.iterdir()] == ["n.arrow"]


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Limits what this process may allocate, beyond what it has; files mapped into memory do not count."""
    before = resource.getrlimit(resource.RLIMIT_DATA)

    def limit(more: int) -> None:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        held = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + more, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_data_may_be_larger_than_memory(tmp_path: Path, suffix: str, little_memory: Callable[[int], None]) -> None:
    """A corpus of 48 MB becomes splits on disk while 24 MB may be allocated."""
    path = tmp_path / f"rows.{suffix}"
    rows = [{"text": f"{n} " + "words " * 2000, "topic": "ab"[n % 2]} for n in range(400)]
    if suffix == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for repeat in range(10):
                file.writelines(json.dumps(row | {"text": f"{repeat}-{row['text']}"}) + "\n" for row in rows)
    else:
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.parquet.ParquetWriter(path, table.schema, use_dictionary=False, compression="none") as writer:
            for _ in range(10):
                writer.write_table(table)
    assert path.stat().st_size > 48_000_000
    heads = [HeadConfig(name="topic", kind="single_label")]
    little_memory(24_000_000)
    corpus = read_corpus(DataConfig(train=str(path)), heads, tmp_path / "scratch")
    assert sum(1 for split in corpus.splits.values() for text in split.texts if text) == 4000


def test_pandas_categories_are_their_names(tmp_path: Path) -> None:
    """A dictionary-encoded column gives its values."""
    pandas.DataFrame({"topic": pandas.Categorical(["a", "b", "a"])}).to_parquet(tmp_path / "rows.parquet")
    assert [row["topic"] for row in read(tmp_path / "rows.parquet")] == ["a", "b", "a"]
