"""What a split lacks is an error or a note before training, never a loss of nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.corpus import Corpus, read_corpus
from polyhead_training.errors import DataError
from tests.training.tiny_run import run, write_run

TOPIC = HeadConfig(name="topic", kind="single_label")
STARS = HeadConfig(name="stars", kind="regression")
TAGS = HeadConfig(name="tags", kind="multi_label")
TRAIN = [{"text": f"text {i}", "topic": "ab"[i % 2], "stars": i, "tags": ["x", "y"][: i % 3]} for i in range(12)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def corpus_of(
    folder: Path,
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]] | None = None,
    heads: tuple[HeadConfig, ...] = (TOPIC, STARS),
    **data: Any,
) -> Corpus:
    """Read as training reads it."""
    given = {} if validation is None else {"validation": write(folder / "v.jsonl", validation)}
    config = DataConfig(train=write(folder / "t.jsonl", train), **given, **data)
    return read_corpus(config, heads, folder / "scratch")


def test_validation_without_a_label_is_an_error(tmp_path: Path) -> None:
    """Nothing could choose the best step."""
    bare = [{"text": f"new {i}", "topic": None, "stars": None} for i in range(3)]
    message = "none of the 3 validation rows has a label of any head.*; add rows to the file of data.validation"
    with pytest.raises(DataError, match=message):
        corpus_of(tmp_path, TRAIN, bare)


def test_validation_without_a_label_of_a_head_is_said(tmp_path: Path) -> None:
    """The line says by what the best step is chosen."""
    rows = [{"text": f"new {i}", "topic": None, "stars": i} for i in range(3)]
    notes = corpus_of(tmp_path, TRAIN, rows).notes
    wanted = "no validation row has a label of head 'topic': the best step is chosen without it"
    assert any(note.startswith(wanted) for note in notes)


def test_a_best_metric_of_such_a_head_is_an_error(tmp_path: Path) -> None:
    """A dry run says so."""
    config = write_run(tmp_path, training='best_metric = "topic/accuracy"')
    bare = [{"text": f"new {i}", "topic": None, "stars": i} for i in range(3)]
    write(tmp_path / "v.jsonl", bare)
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(f'validation = "{tmp_path}/rows.jsonl"', f'validation = "{tmp_path}/v.jsonl"'))
    result = run(config, "--dry-run")
    assert result.exit_code == 2
    assert "topic/accuracy" in result.stderr


def test_training_without_a_label_of_a_head_is_an_error(tmp_path: Path) -> None:
    """All rows that have one are in validation, and drop_leaks removes them from train."""
    rows = [row | {"stars": 1.0 if i < 2 else None} for i, row in enumerate(TRAIN)]
    with pytest.raises(DataError, match=r"head 'stars': none of the 10 training rows has a label of it"):
        corpus_of(tmp_path, rows, rows[:2], drop_leaks=True)


def test_labels_of_validation_alone_are_counted(tmp_path: Path) -> None:
    """Of a file of its own it is an error that lists them and names `labels`."""
    rows = [{"text": f"new {i}", "topic": "abcd"[i], "stars": 1} for i in range(4)]
    message = (
        r"v.jsonl:3: column 'topic': label 'c' is not in the schema of head 'topic'; allowed are a, b. "
        r"2 rows of .*v.jsonl have labels that the schema lacks: 'c', 'd'; labels = \[...\]"
    )
    with pytest.raises(DataError, match=message):
        corpus_of(tmp_path, TRAIN, rows)
    named = TOPIC.model_copy(update={"labels": ["a", "b", "c", "d"]})
    notes = corpus_of(tmp_path, TRAIN, rows, (named, STARS)).notes
    wanted = "head 'topic': validation has 'c' (1 rows), 'd' (1 rows), but train has none: they cannot be learnt"
    wanted += "; add such rows to the file of data.train"
    assert any(note.startswith(wanted) for note in notes)


def test_unknown_labels_are_found_in_any_batch(tmp_path: Path) -> None:
    """Rows are read in batches of 256; the first wrong one may be in a later batch."""
    rows = [{"text": f"new {i}", "topic": None if i % 2 else "a", "stars": 1} for i in range(700)]
    rows[600]["topic"] = "z"
    with pytest.raises(DataError, match=r"v.jsonl:601: column 'topic': label 'z'.* 1 rows of"):
        corpus_of(tmp_path, TRAIN, rows)


def test_rows_without_any_label_are_counted(tmp_path: Path) -> None:
    """They teach nothing; a multi_label head that has no labels in a row has an answer for it."""
    bare = [{"text": f"bare {i}", "topic": None, "stars": None, "tags": None} for i in range(5)]
    notes = corpus_of(tmp_path, [*TRAIN, *bare], TRAIN, (TOPIC, STARS, TAGS)).notes
    assert "5 of 17 train rows have no label of any head; they teach and measure nothing" in notes
    assert not any("validation rows have no label of any head" in note for note in notes)


def test_a_stratified_split_of_every_kind(tmp_path: Path) -> None:
    """A label in 1 row of 20, a fifth of high numbers, and unknown cells: validation has a quarter of each."""
    rows = [
        {"text": f"text {i}", "tags": ["rare"] if i % 20 == 0 else ["x"][: i % 2], "stars": None if i % 5 else i}
        for i in range(400)
    ]
    corpus = corpus_of(tmp_path, rows, None, (TAGS, STARS), split="stratified", validation_share=0.25)
    labels = corpus.validation.labels
    assert abs(len(labels) - 100) <= 2
    assert labels[:, corpus.schema["tags"].index_of["rare"]].sum() == 5
    stars = labels[:, 2]
    assert abs((stars == stars).sum() - 20) <= 1
    high = stars[stars == stars] >= 200  # half of the numbers
    assert abs(high.sum() - 10) <= 2
