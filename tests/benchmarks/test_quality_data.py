"""The data sets of the quality benchmark: what is read from published files, and how rows become parts."""

from __future__ import annotations

import gzip
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.data_sets import (
    DATA_SETS,
    ROOT,
    DataSetError,
    LabelledRow,
    divide,
    learnable,
    read_parts,
    tenth,
)
from benchmarks.quality.peer_data import read_peer_data, write_peer_data
from benchmarks.quality.product import write_config
from polyhead.schema import Head, HeadKind
from polyhead_training.config import read_config


def rows_of(*texts: str) -> list[LabelledRow]:
    return [LabelledRow(text, {"a": "x"}, [text]) for text in texts]


def test_the_part_of_a_text_depends_on_its_words() -> None:
    """The last digit of the SHA-256 of `hello world` is 9, whatever case and blanks."""
    assert [tenth(text) for text in ("hello world", " Hello\n WORLD", "text 28", "text 12")] == [9, 9, 0, 1]


def test_training_rows_become_the_parts_that_are_missing() -> None:
    """Of the digits 0 and 1, the first is test and the second validation; a published validation part stays whole."""
    texts = [row.text for row in rows_of("text 28", "text 12", "text 0")]
    parts = divide({"train": rows_of(*texts)})
    assert {part: [row.text for row in rows] for part, rows in parts.items()} == {
        "train": ["text 0"], "validation": ["text 12"], "test": ["text 28"],
    }  # fmt: skip
    parts = divide({"train": rows_of(*texts), "validation": rows_of("text 29")})
    assert {part: [row.text for row in rows] for part, rows in parts.items()} == {
        "train": ["text 12", "text 0"], "validation": ["text 29"], "test": ["text 28"],
    }  # fmt: skip


def test_every_label_has_a_training_row() -> None:
    """The first test row with a label that training lacks moves to training, the second one stays."""
    new = [LabelledRow(f"new {place}", {"a": "y", "b": 3.0, "c": ["z"]}, []) for place in range(2)]
    parts = learnable({"train": rows_of("old"), "validation": rows_of("known"), "test": new})
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [2, 1, 1]
    assert parts["train"][1].labels["a"] == "y"


@pytest.mark.parametrize(
    ("name", "row", "text", "labels"),
    [
        ("debian", 0, "games train bread bread number 0", {"section": "games", "role": "gam", "tags": ["use::play"]}),
        ("reviews", 1, 'Title, of. pants good a "quote"\nand a line river bread number 1',
         {"department": "Bottoms", "class": "Pants", "division": "General Petite", "rating": 5.0,
          "recommended": "yes"}),
        ("reviews", 4, 'pants bad a "quote"\nand a line chair bread number 4',
         {"department": None, "class": None, "division": None, "rating": 1.0, "recommended": "no"}),
        ("banking77", 0, "card arrival bread bread number 0", {"intent": "card_arrival"}),
        ("clinc150", 2, "visa stone bread number 2", {"domain": "travel", "intent": "visa"}),
        ("goemotions", 3, 'joyful angry train cloud bread number 3 "half a quote', {"emotions": ["joy", "anger"]}),
    ],
)  # fmt: skip
def test_rows_are_read_as_published(public: Path, name: str, row: int, text: str, labels: object) -> None:
    """Text and labels of a row of each set; an empty title and empty labels of a review are unknown."""
    found = DATA_SETS[name].read(public)["train"][row]
    assert (found.text, found.labels) == (text, labels)


def test_reviews_without_a_text_are_left_out(public: Path) -> None:
    """Of 61 rows one has no text."""
    assert sum(map(len, read_parts(DATA_SETS["reviews"], public).values())) == 60


def test_texts_out_of_scope_are_a_part_of_their_own(public: Path) -> None:
    """The published validation part of them; the other part is for methods that can learn from it."""
    parts = read_parts(DATA_SETS["clinc150"], public)
    assert len(parts["outside"]) == 5
    assert all(row.labels["intent"] != "oos" for part in ("train", "validation", "test") for row in parts[part])


@pytest.mark.parametrize("name", DATA_SETS)
def test_written_rows_are_the_rows(public: Path, tmp_path: Path, name: str) -> None:
    """What the product's config reads is written in the published format: read again, it is the same."""
    data_set = DATA_SETS[name]
    rows = data_set.read(public)["train"]
    data_set.write(rows, tmp_path / f"rows{data_set.ending}")
    again = tmp_path / "again"
    again.mkdir()
    for file in data_set.files:
        (again / file).write_bytes((public / file).read_bytes())
    written = (tmp_path / f"rows{data_set.ending}").read_bytes()
    if name == "reviews":
        written = gzip.compress(written)
    if name == "clinc150":
        published = json.loads((public / "clinc150.json").read_text(encoding="utf-8"))
        written = json.dumps(published | {"train": json.loads(written)}).encode()
    (again / data_set.files[0]).write_bytes(written)
    assert data_set.read(again)["train"] == rows


def test_a_missing_file_says_where_it_is_public(tmp_path: Path) -> None:
    """The error names the file, the set's home and the option that leaves it out."""
    with pytest.raises(DataSetError, match=r"banking77_train.csv: there is no such file; .*PolyAI.*--sets"):
        read_parts(DATA_SETS["banking77"], tmp_path)


def test_a_peer_gets_no_label_of_a_test_row(public: Path, tmp_path: Path) -> None:
    """The folder of a peer has the texts of all parts, and labels of training and validation only."""
    data_set = DATA_SETS["clinc150"]
    parts = read_parts(data_set, public)
    write_peer_data(tmp_path, data_set, parts)
    assert "labels" not in (tmp_path / "test.jsonl").read_text(encoding="utf-8")
    data = read_peer_data(tmp_path)
    assert {part: len(texts) for part, texts in data.texts.items()} == {part: len(parts[part]) for part in parts}
    assert data.labels.keys() == {"train", "validation"}
    assert data.rejecting == "intent"
    assert data.heads[1] == Head(name="intent", kind=HeadKind.SINGLE_LABEL, labels=("balance", "transfer", "visa"))


def test_targets_leave_out_unknown_labels(public: Path, tmp_path: Path) -> None:
    """The review without a department is not known to this head, and has a rating."""
    data_set = DATA_SETS["reviews"]
    write_peer_data(tmp_path, data_set, {"train": data_set.read(public)["train"], "validation": [], "test": []})
    data = read_peer_data(tmp_path)
    by_name = {head.name: data.targets(head, "train") for head in data.heads}
    assert np.flatnonzero(~by_name["department"].known).tolist() == [4]
    assert by_name["rating"].values[:3].tolist() == [1.0, 5.0, 1.0]


@pytest.mark.parametrize("name", DATA_SETS)
def test_only_files_output_and_seed_of_a_config_change(public: Path, tmp_path: Path, name: str) -> None:
    """The product trains with the example's own heads, model and options."""
    data_set = DATA_SETS[name]
    path = tmp_path / "config.toml"
    write_config(path, data_set, public, tmp_path / "rows", tmp_path / "out", 7, rehearse=False)
    ours = read_config(path)
    assert (ours.output, ours.seed) == (tmp_path / "out", 7)
    files = {part: str(tmp_path / "rows" / f"rows-{part}{data_set.ending}") for part in ("train", "validation", "test")}
    also = [f"{public / 'clinc150.json'}#oos_train"] if name == "clinc150" else []
    assert ours.data.train == ([files["train"], *also] if also else files["train"])
    assert (ours.data.validation, ours.data.test) == (files["validation"], files["test"])
    theirs = tomllib.loads((ROOT / data_set.config).read_text(encoding="utf-8"))
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in theirs.keys() - {"output", "seed", "data", "heads", "warm_start"}:
        assert written[key] == theirs[key]
    assert {k: v for k, v in written["data"].items() if k not in ("train", "validation", "test")} == {
        k: v for k, v in theirs["data"].items() if k not in ("train", "validation", "test")
    }
    for head, given in zip(written["heads"], theirs["heads"], strict=True):
        assert {k: v for k, v in head.items() if k != "names"} == {k: v for k, v in given.items() if k != "names"}


def test_a_warm_start_reads_training_rows_alone(public: Path, tmp_path: Path) -> None:
    """A config whose warm start names the published file gets the training part, without the test rows."""
    example = tmp_path / "example.toml"
    example.write_text(
        'output = "x"\n[data]\ntrain = "banking77_train.csv"\n[warm_start]\n'
        'texts = ["banking77_train.csv", "elsewhere.txt"]\n[[heads]]\nname = "intent"\nkind = "single_label"\n',
        encoding="utf-8",
    )
    data_set = replace(DATA_SETS["banking77"], config=str(example))
    path = tmp_path / "config.toml"
    write_config(path, data_set, public, tmp_path / "rows", tmp_path / "out", 1, rehearse=True)
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert written["warm_start"]["texts"] == [str(tmp_path / "rows" / "rows-train.csv"), "elsewhere.txt"]
    assert written["training"] == {"max_steps": 2}
    assert written["model"]["gpt2"]["n_embd"] == 16
