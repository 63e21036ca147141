"""Scores a head, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from sklearn import metrics

from polyhead.decode import DecodeOptions, decode, to_scores
from polyhead.schema import Head, Schema
from polyhead_training.evaluation.metrics import expected_calibration_error, score_answers, score_heads
from tests.tiny import SCHEMA


def test_each_kind_is_scored() -> None:
    """Accuracy, F1 and errors of three rows; a row without a label does not count in that head."""
    logits = np.array(
        [[3, 0, 0, 1, -1, -1, -1, 2], [3, 0, 0, 1, 1, -1, -1, 0], [0, 3, 0, -1, -1, -1, -1, 9]], dtype=float
    )
    labels = np.array([[0, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, math.nan]], dtype=np.float32)
    results = score_heads(logits, labels, SCHEMA)
    assert results["topic"]["accuracy"] == pytest.approx(2 / 3)
    assert results["mood"]["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))  # two found, three named, three true
    assert results["mood"]["subset_accuracy"] == pytest.approx(1 / 3)
    # True are 1 and 0, answered 2 and 0: squares 1 off, 0.5 of spread.
    assert results["stars"] == pytest.approx({"rows": 2, "mae": 0.5, "rmse": math.sqrt(0.5), "r2": -1})


def test_a_taxonomy_is_scored_as_it_is_answered() -> None:
    """The parent's own best label does not count where the answered path names another."""
    leaves = {"a1": "a", "a2": "a", "b1": "b"}
    schema = Schema(
        [
            Head(name="area", kind="single_label", labels=("a", "b")),
            Head(name="field", kind="single_label", labels=tuple(leaves), parent="area", parent_of=leaves),
        ]
    )
    # Area alone says a (0.52), but b1 (0.8) makes b the better path.
    logits = np.log([[0.52, 0.48, 0.1, 0.1, 0.8]])
    results = score_heads(logits, np.array([[1, 2]], dtype=np.float32), schema)
    assert (results["area"]["accuracy"], results["field"]["accuracy"]) == (1, 1)


TAXONOMY = Schema(
    [
        Head(name="area", kind="single_label", labels=("a", "b")),
        Head(
            name="field",
            kind="single_label",
            labels=("a1", "a2", "b1"),
            parent="area",
            parent_of={"a1": "a", "a2": "a", "b1": "b"},
        ),
    ]
)


def test_hierarchical_scores_count_ancestors() -> None:
    """By hand: a/a1 for a/a2 shares one of two labels, b/b1 none, a/a1 both; known rows only."""
    logits = np.log([[0.9, 0.1, 0.8, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1, 0.8], [0.9, 0.1, 0.8, 0.1, 0.1]] * 2)
    labels = np.array([[0, 1], [0, 0], [0, 0], [0, math.nan], [math.nan, 0], [math.nan, math.nan]], dtype=np.float32)
    area = score_heads(logits, labels, TAXONOMY)["area"]
    assert (area["rows"], area["taxonomy_rows"]) == (4, 3)
    assert area["hierarchical_precision"] == area["hierarchical_recall"] == pytest.approx(3 / 6)
    assert area["hierarchical_f1"] == pytest.approx(0.5)
    assert area["path_accuracy"] == pytest.approx(1 / 3)
    assert area["consistency"] == 1


@settings(max_examples=30, deadline=None)
@given(data=st.data(), rows=st.integers(0, 30))
def test_any_rows_give_finite_numbers(data: st.DataObject, rows: int) -> None:
    """One row, one class, unknown labels, extreme logits: no warning, no NaN, and answers never contradict."""
    schema = Schema([*SCHEMA, *TAXONOMY])
    logits = data.draw(hnp.arrays(np.float32, (rows, schema.width), elements=st.floats(-1e4, 1e4, width=32)))
    columns = [st.integers(0, 2), *[st.integers(0, 1)] * 4, st.floats(-9, 9, width=16), st.just(0), st.integers(0, 2)]
    row = st.tuples(*(st.one_of(st.just(math.nan), column) for column in columns))
    labels = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), np.float32).reshape(rows, len(columns))
    results = score_heads(logits, labels, schema)
    json.dumps(results, allow_nan=False)
    assert results["area"].get("consistency", 1) == 1


def test_more_labels_than_half_the_rows_is_no_warning() -> None:
    """Each of 40 rows has a label of its own."""
    schema = Schema([Head(name="s", kind="single_label", labels=tuple(f"l{i}" for i in range(40)))])
    result = score_heads(10 * np.eye(40), np.arange(40, dtype=np.float32)[:, None], schema)["s"]
    assert result["accuracy"] == result["auroc"] == result["top_5_accuracy"] == 1


def test_scores_equal_scikit_learns_on_served_answers() -> None:
    """Answers taken from `polyhead.decode` as a client gets them, scored by scikit-learn alone."""
    random = np.random.default_rng(0)
    n = 200
    labels = np.hstack([random.integers(0, 3, (n, 1)), random.integers(0, 2, (n, 4)), random.normal(size=(n, 1))])
    labels = labels.astype(np.float32)
    logits = random.normal(size=(n, SCHEMA.width))
    scores = to_scores(logits, SCHEMA)
    answers = [decode(row, SCHEMA, DecodeOptions()) for row in scores]
    results = score_heads(logits, labels, SCHEMA)
    true, topic = labels[:, 0].astype(int), SCHEMA["topic"]
    chosen = [topic.index_of[answer["topic"]["labels"][0]] for answer in answers]
    assert results["topic"] == pytest.approx(
        {
            "rows": n,
            "accuracy": metrics.accuracy_score(true, chosen),
            "balanced_accuracy": metrics.balanced_accuracy_score(true, chosen),
            "macro_f1": metrics.f1_score(true, chosen, average="macro"),
            "micro_f1": metrics.f1_score(true, chosen, average="micro"),
            "weighted_f1": metrics.f1_score(true, chosen, average="weighted"),
            "auroc": metrics.roc_auc_score(true, special.softmax(logits[:, :3], axis=1), multi_class="ovr"),
            "average_precision": metrics.average_precision_score(true, scores[:, :3]),
            "nll": metrics.log_loss(true, special.softmax(logits[:, :3], axis=1)),
            "ece": results["topic"]["ece"],
        },
        rel=1e-5,
    )
    tags, names = labels[:, 1:5].astype(int), SCHEMA["mood"].labels
    named = np.array([[label in answer["mood"]["labels"] for label in names] for answer in answers]).astype(int)
    mood = results["mood"]
    assert mood["macro_f1"] == pytest.approx(metrics.f1_score(tags, named, average="macro"))
    assert mood["hamming_loss"] == pytest.approx(metrics.hamming_loss(tags, named))
    assert mood["subset_accuracy"] == pytest.approx(metrics.accuracy_score(tags, named))
    assert mood["micro_auroc"] == pytest.approx(metrics.roc_auc_score(tags, logits[:, 3:7], average="micro"), rel=1e-5)
    assert mood["nll"] == pytest.approx(np.logaddexp(0, np.where(tags, -1, 1) * logits[:, 3:7]).mean(), rel=1e-5)
    stars = results["stars"]
    assert stars["r2"] == pytest.approx(metrics.r2_score(labels[:, 5], logits[:, 7]), rel=1e-5)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.9 with one of two right is off by 0.4, 0.1 with none of two by 0.1."""
    error = expected_calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0]))
    assert error == pytest.approx(0.25)


def test_top_k_takes_the_answer_first() -> None:
    """Of four labels with equal scores three are looked at, lower indices first, as served."""
    schema = Schema([Head(name="s", kind="single_label", labels=("a", "b", "c", "d"))])
    labels = np.arange(4, dtype=np.float32)[:, None]
    assert score_heads(np.zeros((4, 4)), labels, schema)["s"]["top_3_accuracy"] == 0.75


def test_unseen_labels_are_misses_in_a_taxonomy() -> None:
    """A row whose leaf training never saw has one true label more that is not found, and its path is wrong."""
    scores = np.array([[0.9, 0.1, 0.8, 0.1, 0.1], [0.9, 0.1, 0.8, 0.1, 0.1]], np.float32)
    labels = np.array([[0, 0], [0, -1]], np.float32)
    found = score_answers(scores, labels, TAXONOMY, {"field": {1: ["a9"]}})["area"]
    # Answered: a, a1, a, a1. True: a, a1, a, a9. Found: a, a1, a.
    assert found["hierarchical_precision"] == pytest.approx(3 / 4)
    assert found["hierarchical_recall"] == pytest.approx(3 / 4)
    assert found["path_accuracy"] == pytest.approx(1 / 2)


def test_only_unseen_labels_are_all_wrong() -> None:
    """Every rate is 0; metrics that need a score of the true label are left out; nothing warns."""
    schema = Schema([Head(name="topic", kind="single_label", labels=tuple("abcdef"))])
    scores = np.full((3, 6), 1 / 6, np.float32)
    labels = np.full((3, 1), -1, np.float32)
    found = score_answers(scores, labels, schema, {"topic": {0: ["x"], 1: ["y"], 2: ["x"]}})["topic"]
    assert {name: found[name] for name in ("rows", "accuracy", "balanced_accuracy", "macro_f1", "top_3_accuracy")} == {
        "rows": 3, "accuracy": 0, "balanced_accuracy": 0, "macro_f1": 0, "top_3_accuracy": 0,
    }  # fmt: skip
    assert not {"nll", "auroc"} & found.keys()
    assert found["ece"] == pytest.approx(1 / 6)
