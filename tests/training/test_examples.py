"""Each example config reads a small file in the format of its public data set, and says the labels that it has.

The rows in `samples` are made up; only names of files, columns and formats are those of the data sets.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from polyhead_training.config import read_config
from polyhead_training.data.corpus import Corpus, read_corpus
from tests.training.tiny_run import run

EXAMPLES = Path(__file__).resolve().parents[2] / "training" / "examples"
SAMPLES = Path(__file__).parent / "samples"
LINES = 28

SAID = {
    "debian": [
        "train: 40 rows", "test: 12 rows", "head section: single_label, 4 labels", "head role: single_label, 4 labels",
        "head tags: multi_label, 4 labels",
    ],
    "reviews": [
        "head department: single_label, 4 labels", "head class: single_label, 6 labels", "head rating: regression",
        "head recommended: single_label, 2 labels", "2 more dropped because their text is blank",
        "head 'department', column 'Department Name': 1 cells are empty and count as unknown",
    ],
    "banking77": ["head intent: single_label, 5 labels"],
    "clinc150": [
        "train: 47 rows", "validation: 16 rows", "head domain: single_label, 3 labels", "home 18",
        "1 of 16 validation rows are out of the scope of head 'intent'",
    ],
    "goemotions": ["train: 36 rows", "validation: 12 rows", "head emotions: multi_label, 6 labels"],
    "jigsaw": ["head toxicity: multi_label, 6 labels", "toxic 9"],
}  # fmt: skip


def corpus_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """The sample as its config reads it."""
    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    config = read_config(EXAMPLES / f"{name}.toml")
    return read_corpus(config.data, config.heads, folder / "scratch", config.seed)


@pytest.mark.parametrize("name", SAID)
def test_a_dry_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends well, the config is short, and says where the data set is public."""
    shutil.copytree(SAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / f"{name}.toml"
    result = run(path, "--dry-run")
    assert result.exit_code == 0, result.output
    for said in SAID[name]:
        assert said in result.output
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < LINES
    assert ".com/" in lines[0] or "make data" in lines[0]


def test_every_example_is_tried() -> None:
    """No config is forgotten."""
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(SAID)


def test_what_goemotions_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are named by their line in the file of labels, and quotes are those of CSV."""
    corpus = corpus_of("goemotions", tmp_path, monkeypatch)
    labels, head = corpus.train.labels, corpus.schema["emotions"]
    rows = {
        text: [head.labels[i] for i in row.nonzero()[0]] for text, row in zip(corpus.train.texts, labels, strict=True)
    }
    assert rows["Thank you, [NAME], for our team"] == ["gratitude", "joy"]
    assert rows["Does anybody know why our team? they said"] == ["curiosity"]


def test_what_clinc_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain of an intent is that of the file of domains, and the taxonomy has it as its parent."""
    corpus = corpus_of("clinc150", tmp_path, monkeypatch)
    assert corpus.schema["intent"].parent_of == {
        "book_flight": "travel", "plane_delay": "travel", "light_on": "home", "play_music": "home",
        "greeting": "small_talk",
    }  # fmt: skip
    assert corpus.schema["domain"].labels == ("home", "small_talk", "travel")


def test_what_jigsaw_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are the labels in their order; the first row has all of the rude ones."""
    corpus = corpus_of("jigsaw", tmp_path, monkeypatch)
    assert corpus.schema["toxicity"].labels[:3] == ("toxic", "severe_toxic", "obscene")
    rows = {
        text: row.tolist()
        for split in corpus.splits.values()
        for text, row in zip(split.texts, split.labels, strict=True)
    }
    rude = next(text for text in rows if text.endswith('edit number 0 is nonsense, "expert"!!!'))
    assert rows[rude] == [1, 1, 1, 0, 1, 0]
