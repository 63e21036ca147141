"""Suspects: planted wrong labels are found, and doubt is no suspicion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray

from polyhead.decode import to_scores
from polyhead.schema import Head, Schema
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import answers_of
from polyhead_training.evaluation.predictions import write_suspects
from polyhead_training.evaluation.suspects import (
    MOST_SUSPECTS,
    Suspect,
    confident_labels,
    find_suspects,
)

SINGLE = Schema([Head(name="topic", kind="single_label", labels=("a", "b", "c"))])
MULTI = Schema([Head(name="tags", kind="multi_label", labels=("x", "y"))])


def noisy(rows: int, sharpness: float = 5.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores of a model that is usually right, and the true classes."""
    random = np.random.default_rng(0)
    true = random.integers(0, 3, rows)
    logits = random.normal(size=(rows, 3))
    logits[np.arange(rows), true] += sharpness
    return to_scores(logits, SINGLE), true


def test_the_joint_by_hand() -> None:
    """A proposal needs a score that is at least usual for its label: the mean over the rows that have it."""
    scores = np.array([[0.9, 0.1]] * 5 + [[0.2, 0.8]] * 5 + [[0.1, 0.9], [0.3, 0.7], [0.6, 0.4]])
    given = np.array([0] * 5 + [1] * 5 + [0, 0, 1])
    # Usual of label 0: (5 * 0.9 + 0.1 + 0.3) / 7 = 0.7; of label 1: (5 * 0.8 + 0.4) / 6 = 0.733.
    best, margin = confident_labels(scores, given)
    assert best.tolist() == [0] * 5 + [1] * 5 + [1, 1, 0]
    assert margin == pytest.approx([0] * 10 + [0.8, 0, 0])  # 0.7 < 0.733 and 0.6 < 0.7


def test_a_rare_label_is_never_proposed() -> None:
    """Of four rows nobody knows how sure the model usually is."""
    scores = np.array([[0.9, 0.1]] * 20 + [[0.05, 0.95]] * 5)
    _, margin = confident_labels(scores, np.array([0] * 21 + [1] * 4))
    assert not margin.any()


def test_planted_wrong_labels_are_found() -> None:
    """Of 1,000 rows 40 have a wrong label: nearly all of them are listed, and nearly nothing else."""
    scores, true = noisy(1000)
    given = true.copy()
    planted = np.random.default_rng(1).choice(1000, 40, replace=False)
    given[planted] = (true[planted] + 1) % 3
    found = find_suspects(answers_of(scores, given[:, None].astype(np.float32), SINGLE))
    places = [suspect.index for suspect in found]
    right = set(places) & set(planted.tolist())
    assert len(right) / len(places) > 0.9
    assert len(right) >= 36
    assert [suspect.score for suspect in found] == sorted((suspect.score for suspect in found), reverse=True)
    names = "abc"
    for suspect in found:
        if suspect.index in right:
            assert (suspect.given, suspect.proposed) == (names[given[suspect.index]], names[true[suspect.index]])
    top = [suspect.index in right for suspect in found[:20]]
    assert sum(top) >= 19


def test_planted_labels_of_several_are_found() -> None:
    """A missing label and one too many, each by its own name."""
    random = np.random.default_rng(0)
    true = random.integers(0, 2, (400, 2))
    scores = to_scores(8 * (true - 0.5) + random.normal(size=(400, 2)), MULTI)
    labels = true.astype(np.float32)
    labels[[5, 50], 0] = 1 - labels[[5, 50], 0]
    labels[7, 1] = 1 - labels[7, 1]
    labels[9] = np.nan
    found = find_suspects(answers_of(scores, labels, MULTI))
    assert {suspect.index for suspect in found} == {5, 50, 7}
    for suspect in found:
        column, name = (1, "y") if suspect.index == 7 else (0, "x")
        expected = (name, f"not {name}") if labels[suspect.index, column] else (f"not {name}", name)
        assert (suspect.given, suspect.proposed) == expected


def test_doubt_is_no_suspicion() -> None:
    """Right labels, or a model that is unsure of everything, give no list; nor do unknown and unseen labels."""
    scores, true = noisy(500)
    assert len(find_suspects(answers_of(scores, true[:, None].astype(np.float32), SINGLE))) <= 2
    unsure = np.full((500, 3), 1 / 3, np.float32)
    assert not find_suspects(answers_of(unsure, true[:, None].astype(np.float32), SINGLE))
    labels = np.where(true[:, None] == 0, np.nan, -1).astype(np.float32)
    assert not find_suspects(answers_of(scores, labels, SINGLE, {"topic": {i: ["new"] for i in np.flatnonzero(true)}}))


def test_a_list_is_short_enough_to_read() -> None:
    """However wrong the labels are."""
    scores, true = noisy(5000, sharpness=9)
    given = np.where(np.random.default_rng(1).random(5000) < 0.2, (true + 1) % 3, true)
    assert len(find_suspects(answers_of(scores, given[:, None].astype(np.float32), SINGLE))) == MOST_SUSPECTS


def test_the_file_names_the_row(tmp_path: Path) -> None:
    """With its place, split and text, of all splits, the most certain first."""

    def evaluation(split: str, suspects: list[Suspect]) -> Evaluation:
        return Evaluation(
            schema=SINGLE, max_length=8, texts=[f"{split} one", f"{split}, \"two\"\nlines"],
            labels=np.zeros((2, 1), np.float32), scores=np.zeros((2, 3), np.float32),
            token_counts=np.ones(2, np.int32), truncated=np.zeros(2, bool), metrics={},
            files=[f"{split}.csv"] * 2, rows=np.array([4, 9]), splits=[split] * 2, suspects=suspects,
        )  # fmt: skip

    write_suspects(
        tmp_path / "suspects.csv",
        [
            evaluation("validation", [Suspect("topic", 0, "a", "b", 0.75)]),
            evaluation("test", [Suspect("topic", 1, "c", "a", 0.875), Suspect("topic", 0, "b", "a", 0.5)]),
        ],
    )
    rows = pandas.read_csv(tmp_path / "suspects.csv").to_dict("records")
    assert rows == [
        {"head": "topic", "given": given, "proposed": proposed, "score": score, "file": f"{split}.csv", "row": row,
         "split": split, "text": text}
        for given, proposed, score, split, row, text in (
            ("c", "a", 0.875, "test", 9, 'test, "two"\nlines'),
            ("a", "b", 0.75, "validation", 4, "validation one"),
            ("b", "a", 0.5, "test", 4, "test one"),
        )
    ]  # fmt: skip
