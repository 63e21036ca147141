"""What the config asks for is done to the rows, and what the user should know is noted with counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.errors import PolyheadError
from polyhead.schema import Head, Schema
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.corpus import Corpus, Split, read_corpus, read_split
from polyhead_training.data.description import describe_corpus
from polyhead_training.errors import ConfigError, DataError

TOPIC = HeadConfig(name="topic", kind="single_label")
TAGS = HeadConfig(name="tags", kind="multi_label")
STARS = HeadConfig(name="stars", kind="regression")
ROWS = [
    {"title": "One", "text": "first text", "topic": "a", "tags": ["x", "y"], "stars": 1, "lang": "en"},
    {"title": "Two", "text": "second text", "topic": "b", "tags": ["y"], "stars": 2, "lang": "de"},
    {"title": None, "text": "third text", "topic": "a", "tags": [], "stars": 3, "lang": "fr"},
    {"title": "", "text": " ", "topic": "b", "tags": ["x"], "stars": 4, "lang": "en"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """One row per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(
    folder: Path,
    rows: list[dict[str, Any]] = ROWS,
    heads: tuple[HeadConfig, ...] = (TOPIC,),
    seed: int = 0,
    **data: Any,
) -> Corpus:
    """A corpus of the rows, with two validation rows of its own unless a split is given."""
    config: dict[str, Any] = {"train": write(folder / "train.jsonl", rows)}
    if not {"validation", "split", "validation_share", "split_column"} & set(data):
        held_out = [row | {"text": f"held out {i}", "title": "Held"} for i, row in enumerate(ROWS[:2])]
        config["validation"] = write(folder / "validation.jsonl", held_out)
    return read_corpus(DataConfig(**config | data), heads, folder / "scratch", seed)


def many(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Rows with texts of their own and two topics."""
    return [
        {"text": f"text {i} of many", "topic": "ab"[i % 2], "author": f"author {i % 40}"} | changes
        for i in range(count)
    ]


def test_a_text_of_several_columns(tmp_path: Path) -> None:
    """The template takes columns and leaves empty cells out; a row where all are empty has no text."""
    corpus = read(tmp_path, text_template="{title}: {text}{{!}}")
    assert list(corpus.train.texts) == ["One: first text{!}", "Two: second text{!}", ": third text{!}"]
    assert corpus.train.dropped == 1


def test_an_optional_part_goes_with_its_fields(tmp_path: Path) -> None:
    """An empty title leaves nothing of its part."""
    corpus = read(tmp_path, text_template="[[{title}: ]]{text}")
    assert list(corpus.train.texts) == ["One: first text", "Two: second text", "third text"]


def test_named_text_transforms_are_left_to_the_tokenizer(tmp_path: Path) -> None:
    """Only the function changes the rows, and a note says that serving lacks it."""
    corpus = read(tmp_path, text_transforms=["lowercase", "tests.user_functions:shout"])
    assert corpus.train.texts[0] == "FIRST TEXT"
    assert any("shout" in note and "serving does not apply it" in note for note in corpus.notes)


def test_labels_are_transformed(tmp_path: Path) -> None:
    """By name and by function; what becomes empty is no label."""
    rows = [row | {"topic": f" {row['topic']}"} for row in ROWS]
    topic = TOPIC.model_copy(update={"label_transforms": ["strip", "tests.user_functions:shout"]})
    tags = TAGS.model_copy(update={"label_transforms": ["tests.user_functions:forget"]})
    corpus = read(tmp_path, rows, (topic, tags), validation=str(tmp_path / "train.jsonl"))
    assert (corpus.schema["topic"].labels, corpus.schema["tags"].labels) == (("A", "B"), ("y",))
    np.testing.assert_array_equal(corpus.train.labels, [[0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ({"where": {"lang": "en"}}, ["first text"]),
        ({"where": {"lang": ["de", "fr"]}}, ["second text", "third text"]),
        ({"where": {"tags": "y", "stars": ["2", "3"]}}, ["second text"]),
        ({"filters": ["tests.user_functions:has_stars"], "where": {"stars": ["2"]}}, ["second text"]),
    ],
)
def test_rows_are_filtered(tmp_path: Path, data: dict[str, Any], texts: list[str]) -> None:
    """`where` compares as text and looks into lists; all conditions must hold; what was left out is counted."""
    corpus = read(tmp_path, validation=str(tmp_path / "train.jsonl"), heads=(STARS,), **data)
    assert list(corpus.train.texts) == texts
    assert any(note.startswith("where and filters: left out") and "of 4 rows of train" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("data", "heads", "message"),
    [
        ({"text_template": "{title"}, (TOPIC,), "data.text_template '{title': character 1: expected '}'"),
        ({"text_template": "{title!r}"}, (TOPIC,), "must hold a column's name and nothing else"),
        ({"text_template": "{}"}, (TOPIC,), "must hold a column's name and nothing else"),
        ({"text_template": "title"}, (TOPIC,), "names no field"),
        ({"text_template": "{name}"}, (TOPIC,), "train.jsonl: has no column 'name', only title, text"),
        ({"text_template": "{text}{name}"}, (TOPIC,), "; text_template needs 'text', 'name'"),
        ({"text_template": "{tags}"}, (TOPIC,), "field 'tags' must be a text, .* got a list"),
        ({"text_template": "{title}]]"}, (TOPIC,), "character 8: '\\]\\]' without"),
        ({"where": {"nope": "x"}}, (TOPIC,), "train.jsonl: has no column 'nope'"),
        ({"split_column": "nope"}, (TOPIC,), "train.jsonl: has no column 'nope'"),
        ({"upsample": [{"column": "nope", "values": ["x"], "times": 2}]}, (TOPIC,), "has no column 'nope'"),
        ({"validation_share": 0.001}, (TOPIC,), "of 3 rows none is left for validation; raise data.validation_share"),
        ({"where": {"lang": "xx"}}, (TOPIC,), r"train split has no row with a text \(4 were left out by where"),
        ({"text_transforms": ["upper"]}, (TOPIC,), "text_transforms 'upper': must be one of strip, .*nfkc, 'package"),
        ({"filters": ["tests.nowhere:f"]}, (TOPIC,), "data.filters 'tests.nowhere:f': cannot be imported"),
        ({"filters": ["tests.user_functions:number"]}, (TOPIC,), "data.filters .*: must be a function, got int"),
        ({"augment": ["tests.user_functions:shout"]}, (TOPIC,),
         "train.jsonl:1: data.augment 'tests.user_functions:shout' failed .TypeError"),
        ({"text_transforms": ["tests.user_functions:count"]}, (TOPIC,), ":1: .*:count' must return a text, got 10"),
        ({}, (STARS.model_copy(update={"y_range": (0, 2.5)}),),
         "train.jsonl:3: column 'stars': must lie in the y_range 0 to 2.5, got 3"),
        ({"filters": ["tests.leaving:keep"]}, (TOPIC,), "data.filters 'tests.leaving:keep': cannot be imported .Sys"),
        ({"validation": "TRAIN", "drop_leaks": True}, (TOPIC,), "none is left for train; see .*data.drop_leaks"),
        ({"validation": "TRAIN", "split": "stratified", "stratify_by": "nope"}, (TOPIC,), "stratify_by 'nope'"),
        ({"split": "stratified", "stratify_by": "tag"}, (TOPIC, TAGS), r"'tag': must be one of .*\['topic', 'tags'\]"),
        ({}, (TOPIC.model_copy(update={"label_transforms": ["upper"]}),),
         "heads.topic.label_transforms 'upper': must be one of strip, lowercase, whole_number, 'package"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    tmp_path: Path, data: dict[str, Any], heads: tuple[HeadConfig, ...], message: str
) -> None:
    """It names the file and row or the config's field, and what is allowed."""
    data = {key: str(tmp_path / "train.jsonl") if key == "validation" else value for key, value in data.items()}
    with pytest.raises(PolyheadError, match=message) as caught:
        read(tmp_path, heads=heads, **data)
    assert isinstance(caught.value, ConfigError | DataError)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "scratch").glob("staged-*"))


def test_hash_split_with_shares(tmp_path: Path) -> None:
    """Validation and test are held out by text, also where texts differ in case and white space alone."""
    rows = many(400) + [row | {"text": row["text"].upper() + " "} for row in many(400)]
    corpus = read(tmp_path, rows, validation_share=0.2, test_share=0.3)
    sizes = {name: len(split) for name, split in corpus.splits.items()}
    assert sum(sizes.values()) == 800
    assert 100 < sizes["validation"] < 220
    assert 180 < sizes["test"] < 300
    assert not [note for note in corpus.notes if note.startswith("leak")]


def test_a_split_by_column_keeps_its_values_together(tmp_path: Path) -> None:
    """No author stands on both sides."""
    rows = [row | {"text": f"{row['text']} by {row['author']}."} for row in many(400)]
    corpus = read(tmp_path, rows, split_column="author", validation_share=0.3)
    authors = [{text.rpartition(" by ")[2] for text in split.texts} for split in (corpus.train, corpus.validation)]
    assert all(authors)
    assert not authors[0] & authors[1]


def test_a_stratified_split(tmp_path: Path) -> None:
    """A rare label has its share in validation."""
    rows = [row | {"topic": "rare" if i % 20 == 0 else "common"} for i, row in enumerate(many(400))]
    corpus = read(tmp_path, rows, split="stratified", validation_share=0.25)
    assert Counter(corpus.validation.labels[:, 0].tolist()) == {0: 95, 1: 5}


def test_given_splits_are_kept_and_others_held_out(tmp_path: Path) -> None:
    """With a validation file, a test share is still held out of train."""
    validation = write(tmp_path / "v.jsonl", many(7))
    corpus = read(tmp_path, many(200), validation=validation, test_share=0.2)
    assert len(corpus.validation) == 7
    assert len(corpus.train) + len(corpus.test or ()) == 200
    assert corpus.test is not None


def test_a_rare_label_that_is_held_out_is_known(tmp_path: Path) -> None:
    """Labels are those of all rows of the train file, and the description names those that no training row has."""
    rows = [row | {"topic": f"topic {i}"} for i, row in enumerate(many(40))]
    corpus = read(tmp_path, rows, validation_share=0.3)
    assert len(corpus.schema["topic"].labels) == 40
    line = next(line for line in describe_corpus(corpus) if "no training row has" in line)
    assert f"({len(corpus.validation)} of 40 labels)" in line


LEAKY = [
    {"text": "same", "topic": "a"},
    {"text": " SAME", "topic": "a"},
    {"text": "same", "topic": "b"},
    {"text": "Seen\nbefore", "topic": "b"},
    {"text": "alone", "topic": "a"},
]


def leaky(folder: Path, **data: Any) -> Corpus:
    """Three training rows of one text, one of them with another label, and one that validation and test have too."""
    validation = write(folder / "v.jsonl", [{"text": "seen before", "topic": "a"}, {"text": "new", "topic": "a"}])
    test = write(folder / "t.jsonl", [{"text": "seen before", "topic": "a"}])
    return read(folder, LEAKY, validation=validation, test=test, **data)


def test_leaks_and_duplicates_are_counted(tmp_path: Path) -> None:
    """A line for each pair of splits and one for train; nothing is removed."""
    corpus = leaky(tmp_path)
    assert len(corpus.train) == 5
    assert [note.partition(";")[0] for note in corpus.notes] == [
        "leak: 1 of 2 validation rows have the text of a row in train",
        "leak: 1 of 1 test rows have the text of a row in train",
        "leak: 1 of 1 test rows have the text of a row in validation",
        "duplicates: 2 of 5 training rows repeat an earlier text, 1 of them with the same labels",
    ]


def test_leaks_and_duplicates_are_dropped(tmp_path: Path) -> None:
    """Both leave train alone; a repeated text with another label stays."""
    corpus = leaky(tmp_path, drop_leaks=True, drop_duplicates=True)
    assert list(corpus.train.texts) == ["same", "same", "alone"]
    assert (len(corpus.validation), len(corpus.test or ())) == (2, 1)


def test_upsampled_rows_are_repeated_in_train_alone(tmp_path: Path) -> None:
    """Rows of a value, also in a list, stand there so many times, the largest where several hold."""
    upsample = [
        {"column": "topic", "values": ["b"], "times": 2},
        {"column": "tags", "values": ["y"], "times": 3},
    ]
    corpus = read(tmp_path, upsample=upsample)
    assert Counter(corpus.train.texts) == {"first text": 3, "second text": 3, "third text": 1}
    assert len(corpus.validation) == 2
    assert "upsample: repeats 2 of 3 training rows, 7 rows in all" in corpus.notes
    assert not [note for note in corpus.notes if "no row" in note]


def test_upsampling_no_row_is_noted(tmp_path: Path) -> None:
    """A value that stands nowhere is named with its column."""
    corpus = read(tmp_path, upsample=[{"column": "topic", "values": ["nope"], "times": 2}])
    assert "upsample: no row has one of ['nope'] in column 'topic'" in corpus.notes


def test_augmented_copies_follow_their_row(tmp_path: Path) -> None:
    """In train alone, with the row's labels; the same seed makes the same copies."""
    options: dict[str, Any] = {"augment": ["tests.user_functions:drop_word"], "augment_copies": 2}
    corpus = read(tmp_path, many(20), seed=1, **options)
    texts = list(corpus.train.texts)
    assert len(texts) == 60
    assert all(len(copy.split()) == 3 for copy in texts[1::3] + texts[2::3])
    np.testing.assert_array_equal(corpus.train.labels[0::3], corpus.train.labels[1::3])
    np.testing.assert_array_equal(corpus.train.labels[0::3], corpus.train.labels[2::3])
    assert len(corpus.validation) == 2
    assert "augment: added 40 training rows" in corpus.notes
    assert list(read(tmp_path, many(20), seed=1, **options).train.texts) == texts
    assert list(read(tmp_path, many(20), seed=2, **options).train.texts) != texts


def test_a_function_that_is_listed_twice_makes_other_copies(tmp_path: Path) -> None:
    """Each place in the list has a seed of its own."""
    texts = list(read(tmp_path, many(20), augment=["tests.user_functions:drop_word"] * 2).train.texts)
    assert texts[1::3] != texts[2::3]


def test_copies_with_a_held_out_text_are_left_out(tmp_path: Path) -> None:
    """An augmentation leaks nothing, whatever the case that the tokenizer takes away, and the note counts it."""
    rows = [{"text": "held OUT", "topic": "a"}, {"text": "three words here", "topic": "b"}]
    validation = write(tmp_path / "v.jsonl", [{"text": text, "topic": "a"} for text in ("héld", "oút", "new")])
    corpus = read(
        tmp_path, rows, validation=validation, augment=["tests.user_functions:drop_word"],
        text_transforms=["strip_accents"],
    )  # fmt: skip
    assert len(corpus.train) == 3
    assert "augment: added 1 training rows; 1 more had the text of a held-out row and were left out" in corpus.notes


def test_leaks_are_seen_after_the_named_transforms(tmp_path: Path) -> None:
    """Texts that the tokenizer makes equal are equal; the rows keep their own."""
    rows = [{"text": "café", "topic": "a"}, {"text": "cafe", "topic": "a"}, {"text": "tea", "topic": "b"}]
    validation = write(tmp_path / "v.jsonl", [{"text": "cafè", "topic": "a"}])
    corpus = read(tmp_path, rows, validation=validation, text_transforms=["strip_accents"], drop_duplicates=True)
    assert list(corpus.train.texts) == ["café", "tea"]
    assert corpus.notes[0].startswith("leak: 1 of 1 validation rows")
    assert corpus.notes[1].startswith("duplicates: 1 of 3 training rows")


def test_blank_copies_are_left_out(tmp_path: Path) -> None:
    """An augmentation that empties a text adds nothing, and the note says so."""
    rows = [{"text": "word", "topic": "a"}, {"text": "two words", "topic": "b"}]
    corpus = read(tmp_path, rows, augment=["tests.user_functions:drop_word"])
    assert len(corpus.train) == 3
    assert "augment: added 1 training rows; 1 more were blank and left out" in corpus.notes


CHILD = HeadConfig(name="leaf", kind="single_label", parent="topic")


def test_parents_are_learned(tmp_path: Path) -> None:
    """Each label's parent is the one that the rows show; a row without either teaches nothing."""
    rows = [
        {"text": "1", "topic": "a", "leaf": "a1"},
        {"text": "2", "topic": "a", "leaf": "a2"},
        {"text": "3", "topic": "b", "leaf": "b1"},
        {"text": "4", "topic": None, "leaf": "b1"},
        {"text": "5", "topic": "a", "leaf": None},
    ]
    corpus = read(tmp_path, rows, (TOPIC, CHILD), validation=str(tmp_path / "train.jsonl"))
    assert corpus.schema["leaf"].parent_of == {"a1": "a", "a2": "a", "b1": "b"}


def test_rows_that_contradict_given_parents_are_counted(tmp_path: Path) -> None:
    """With the place of the first; they are trained on as they are."""
    leaf = CHILD.model_copy(update={"parent_of": {"a1": "a", "b1": "b"}})
    pairs = [("a", "a1"), ("b", "a1"), (None, "b1"), ("a", "b1"), ("b", "b1")]
    rows = [{"text": str(i), "topic": topic, "leaf": label} for i, (topic, label) in enumerate(pairs)]
    corpus = read(tmp_path, rows, (TOPIC, leaf), validation=write(tmp_path / "v.jsonl", rows[:1]))
    path = tmp_path / "train.jsonl"
    assert f"parent_of: 2 rows of {path} contradict that of head 'leaf', first {path}:2" in corpus.notes
    assert len(corpus.train) == 5


def test_a_column_of_two_heads_is_split_for_where(tmp_path: Path) -> None:
    """The multi_label head's separator holds, wherever it stands among the heads."""
    rows = [{"text": "one", "tags": "x,y"}, {"text": "two", "tags": "y"}, {"text": "three", "tags": "z"}]
    whole = HeadConfig(name="whole", kind="single_label", column="tags")
    path = write(tmp_path / "v.jsonl", rows)
    corpus = read(tmp_path, rows, (TAGS, whole), validation=path, where={"tags": ["x", "z"]})
    assert list(corpus.train.texts) == ["one", "three"]


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        (
            ["a", "b", "b"],
            "'leaf': a label has one parent in 'topic', but 1 labels have several; 1 rows differ .* 'x' is below "
            r"'a' in 1 \(first .*:1\), 'b' in 1 \(first .*:3\)",
        ),
        (["a", "b", None], "'leaf': no row gives a parent for 'z'; add it to parent_of"),
    ],
)
def test_a_label_has_one_parent(tmp_path: Path, topics: list[str | None], message: str) -> None:
    """Two parents are an error that names both and a row of each; none is one too."""
    leaves = ["x", "y", "x" if topics[2] else "z"]
    rows = [
        {"text": str(i), "topic": topic, "leaf": leaf}
        for i, (topic, leaf) in enumerate(zip(topics, leaves, strict=True))
    ]
    with pytest.raises(DataError, match=message):
        read(tmp_path, rows, (TOPIC, CHILD), validation=str(tmp_path / "train.jsonl"))


def test_contradictory_parents_are_counted_and_mended(tmp_path: Path) -> None:
    """How many labels and rows, the label with most rows, and three ways out."""
    pairs = 3 * [("a", "x")] + 2 * [("b", "x")] + [("c", "x")] + 4 * [("a", "y")] + [("b", "y")] + [("c", "z")]
    rows = [{"text": str(place), "topic": topic, "leaf": leaf} for place, (topic, leaf) in enumerate(pairs)]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, (TOPIC, CHILD), validation=str(tmp_path / "train.jsonl"))
    message, path = str(caught.value), tmp_path / "train.jsonl"
    assert "2 labels have several; 4 rows differ" in message  # 2 + 1 of x, 1 of y
    assert f"'x' is below 'a' in 3 (first {path}:1), 'b' in 2 (first {path}:4), 'c' in 1 (first {path}:6)." in message
    for remedy in ('parent_of = { "x" = "a", … }', "'a / x'", "leave out parent"):
        assert remedy in message


SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("a", "b")),
        Head(name="tags", kind="multi_label", labels=("x", "y")),
        Head(name="stars", kind="regression"),
    ]
)


def evaluate(
    folder: Path,
    rows: list[dict[str, Any]],
    metadata: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    heads: tuple[HeadConfig, ...] = (),
    **data: Any,
) -> Split:
    """The rows as training would read them."""
    config = DataConfig(train="unused.jsonl", **data)
    path = write(folder / "e.jsonl", rows)
    return read_split(path, config, heads or (TAGS, TOPIC), SCHEMA, folder / "scratch", metadata, without=without)


def test_a_vector_without_names_is_no_label_in_an_evaluation_either(tmp_path: Path) -> None:
    """The order of the model's labels need not be that of the vector, so it is not assumed."""
    rows = [{"text": "rain", "topic": SCHEMA["topic"].labels[0], "stars": 1, "tags": [0, 0, 1]}]
    with pytest.raises(DataError, match=r"number per label; name the labels in this order: positions"):
        evaluate(tmp_path, rows)


def test_rows_to_evaluate_are_read_as_in_training(tmp_path: Path) -> None:
    """Template, functions and filters apply; labels follow the schema's order; metadata comes as text."""
    split = evaluate(
        tmp_path, ROWS, ("lang", "stars"), text_template="{title} {text}", where={"lang": ["en", "de"]},
        text_transforms=["tests.user_functions:shout"],
    )  # fmt: skip
    assert list(split.texts) == ["ONE FIRST TEXT", "TWO SECOND TEXT"]
    np.testing.assert_array_equal(split.labels, [[0, 1, 1, 1], [1, 0, 1, 2]])
    assert list(split.rows["lang"]) == ["en", "de"]
    assert list(split.rows["stars"]) == ["1", "2"]
    assert (split.dropped, split.filtered) == (1, 1)


def test_a_head_is_left_out_only_if_told(tmp_path: Path) -> None:
    """A column that is missing is an error, which names those that are there; a head that is left out needs none."""
    rows = [{"text": "one", "topic": "b"}]
    labels = evaluate(tmp_path, rows, without=("tags", "stars")).labels
    np.testing.assert_array_equal(labels, [[1, np.nan, np.nan, np.nan]])
    message = "has no column 'tags', only text, topic; it must hold the labels of head 'tags': --without tags leaves"
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path, rows, without=("stars",))
    with pytest.raises(DataError, match="has no column 'text', only topic"):
        evaluate(tmp_path, [{"topic": "b"}], without=("tags", "stars"))
    with pytest.raises(DataError, match="has no column 'nope'"):
        evaluate(tmp_path, rows, ("nope",), without=("tags", "stars"))


def test_a_left_out_column_is_not_even_read(tmp_path: Path) -> None:
    """Cells that no rule understands are no bad rows."""
    rows = [{"text": "one", "topic": "b", "tags": {"a": {}}, "stars": "many"}]
    split = evaluate(tmp_path, rows, without=("tags", "stars"))
    assert np.isnan(split.labels[0]).tolist() == [False, True, True, True]


def test_labels_that_training_never_saw_are_kept(tmp_path: Path) -> None:
    """In place of an index stands a number below 0; the labels are listed by row, also ids without a name."""
    rows: list[dict[str, Any]] = [
        {"text": "one", "topic": "c", "tags": ["x", "new", "newer"], "stars": 1},
        {"text": "two", "topic": "a", "tags": ["new"], "stars": 2},
        {"text": "three", "topic": 9, "tags": [], "stars": 3},
    ]
    named = HeadConfig(name="topic", kind="single_label", names={"0": "a", "1": "b"})
    split = evaluate(tmp_path, rows, heads=(TAGS, named))
    np.testing.assert_array_equal(split.labels, [[-1, 1, 0, 1], [0, 0, 0, 2], [-1, 0, 0, 3]])
    assert split.unseen == {"topic": {0: ["c"], 2: ["9"]}, "tags": {0: ["new", "newer"], 1: ["new"]}, "stars": {}}


def test_a_row_keeps_its_place(tmp_path: Path) -> None:
    """File and row number, of held-out rows too; rows without a text count, as they do in messages."""
    rows = [{"text": "" if i == 3 else f"text {i}", "topic": "ab"[i % 2]} for i in range(60)]
    corpus = read(tmp_path, rows, (TOPIC,), validation_share=0.3, test_share=0.2)
    seen = []
    for split in corpus.splits.values():
        files, numbers = split.places
        assert set(files) == {str(tmp_path / "train.jsonl")}
        assert [f"text {number - 1}" for number in numbers] == list(split.texts)
        seen += numbers.tolist()
    assert sorted(seen) == [number for number in range(1, 61) if number != 4]


def test_a_test_part_is_held_out_if_there_are_rows_enough(tmp_path: Path) -> None:
    """A tenth from 1,000 rows on, said with the key that turns it off; not with fewer, nor if test rows are given."""
    rows = [{"text": f"text {i}", "topic": "ab"[i % 2]} for i in range(1000)]
    corpus = read(tmp_path, rows, (TOPIC,))
    assert corpus.test is not None
    assert 70 < len(corpus.test) < 130
    assert len(corpus.train) + len(corpus.test) == 1000
    (note,) = [note for note in corpus.notes if note.startswith("test:")]
    assert f"test: {len(corpus.test)} of 1000 rows of " in note
    assert "data.test_share = 0" in note
    assert corpus.test.origin.startswith("held out of ")
    assert corpus.test.in_train == 0
    assert read(tmp_path, rows, (TOPIC,), test_share=0).test is None
    assert read(tmp_path, rows[:999], (TOPIC,)).test is None
    given = write(tmp_path / "test.jsonl", rows[:7])
    given_test = read(tmp_path, rows, (TOPIC,), test=given)
    assert given_test.test is not None
    assert (len(given_test.test), given_test.test.origin) == (7, f"of {given}")
    assert given_test.test.in_train == len(set(given_test.test.texts) & set(given_test.train.texts)) > 0


def test_a_test_part_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    """A hash of few values cannot give a tenth. Nobody asked for it, so it is no error."""
    rows = [{"text": f"text {i}", "topic": f"t{i % 200}", "lang": "ab"[i % 2]} for i in range(1000)]
    validation = write(tmp_path / "validation.jsonl", [{"text": "v", "topic": "t0"}])
    corpus = read(tmp_path, rows, (TOPIC,), validation=validation, split_column="lang")
    assert corpus.test is None
    assert len(corpus.train) == 1000


def test_a_corpus_in_words(tmp_path: Path) -> None:
    """Rows of each split, labels of each head with the rarest, missing labels and all notes."""
    rows = [
        {"text": f"text {i}", "topic": "abcdefghijkl"[i % 12], "tags": ["x"] if i else None, "stars": i}
        for i in range(30)
    ]
    validation = write(tmp_path / "v.jsonl", [{"text": "text 0", "topic": None, "tags": ["x"], "stars": 1}])
    lines = describe_corpus(read(tmp_path, [*rows, {"text": ""}], (TOPIC, TAGS, STARS), validation=validation))
    assert lines == [
        "train: 30 rows, 1 more dropped because their text is blank",
        "validation: 1 rows",
        "head topic: single_label, 12 labels",
        "  validation: 1 of 1 rows have no label",
        "  train: most frequent a 3, b 3, c 3, d 3, e 3; rarest h 2, i 2, j 2, k 2, l 2",
        "head tags: multi_label, 1 labels",
        "  train: 1 of 30 rows have no label",
        "  train: x 29",
        "head stars: regression",
        "  train: from 0 to 29, mean 14.5",
        "note: leak: 1 of 1 validation rows have the text of a row in train; "
        "data.drop_leaks = true removes such rows from train",
        "note: no validation row has a label of head 'topic': the best step is chosen without it, and nothing of it is "
        "calibrated or measured; add rows to the file of data.validation",
    ]
