"""Heads of many labels: metrics cost no step per label, and their rankings are scikit-learn's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.evaluation import rankings
from polyhead_training.evaluation.metrics import score_answers
from polyhead_training.evaluation.rankings import rankings_of_labels


def calls_of(work: Callable[[], Any]) -> int:
    """How many functions, of Python and of C, are called."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def answered(kind: HeadKind, labels: int, rows: int = 60) -> tuple[Any, Any, Schema]:
    """Random scores and labels of a head; each label has a positive row."""
    random = np.random.default_rng(labels)
    scores = random.random((rows, labels)).astype(np.float32)
    schema = Schema([Head(name="a", kind=kind, labels=tuple(f"label {i}" for i in range(labels)))])
    if kind == HeadKind.SINGLE_LABEL:
        return (
            scores / scores.sum(axis=1, keepdims=True),
            random.integers(0, labels, (rows, 1)).astype(np.float32),
            schema,
        )
    true = np.zeros((rows, labels), np.float32)
    true[random.integers(0, rows, labels), np.arange(labels)] = 1
    return scores, true, schema


@pytest.mark.parametrize("kind", [HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL])
def test_metrics_take_no_step_per_label(kind: HeadKind) -> None:
    """A hundred times as many labels take hardly more calls."""
    few, many = answered(kind, 20), answered(kind, 2000)
    score_answers(*few)  # what is imported and cached on first use
    assert calls_of(lambda: score_answers(*many)) < 3 * calls_of(lambda: score_answers(*few))


@pytest.mark.parametrize("most_scores", [1, 100, 2**24])
@pytest.mark.parametrize("digits", [1, 7])
def test_rankings_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, most_scores: int, digits: int) -> None:
    """Also with equal scores, and whatever number of labels is sorted at a time."""
    monkeypatch.setattr(rankings, "MOST_SCORES", most_scores)
    random = np.random.default_rng(0)
    scores = random.random((50, 9)).round(digits).astype(np.float32)
    true = (random.random((50, 9)) < np.linspace(0.05, 0.9, 9)).astype(np.int8)
    true[0], true[1] = 0, 1
    auroc, average_precision = rankings_of_labels(true, scores)
    for i in range(9):
        assert auroc[i] == pytest.approx(roc_auc_score(true[:, i], scores[:, i]), abs=1e-12)
        assert average_precision[i] == pytest.approx(average_precision_score(true[:, i], scores[:, i]), abs=1e-12)


def test_a_ranking_worked_out_by_hand() -> None:
    """Scores 0.9+ 0.8- 0.8+ 0.1-: pairs 1, 1, 0.5, 1 of 4 are in order; precisions are 1/1 and 2/3."""
    auroc, average_precision = rankings_of_labels(
        np.array([[1], [0], [1], [0]], np.int8), np.array([[0.9], [0.8], [0.8], [0.1]], np.float32)
    )
    assert auroc[0] == pytest.approx(3.5 / 4)
    assert average_precision[0] == pytest.approx((1 + 2 / 3) / 2)


def test_scores_of_many_labels_are_those_of_scikit_learn() -> None:
    """Micro and macro rankings and the likelihood of a multi_label head, of the labels with both kinds of rows."""
    scores, true, schema = answered(HeadKind.MULTI_LABEL, 40)
    found = score_answers(scores, true, schema)["a"]
    for average in ("micro", "macro"):
        assert found[f"{average}_auroc"] == pytest.approx(roc_auc_score(true, scores, average=average), abs=1e-9)
        expected = average_precision_score(true, scores, average=average)
        assert found[f"{average}_average_precision"] == pytest.approx(expected, abs=1e-9)
    exact = scores.ravel().astype(np.float64)
    assert found["nll"] == pytest.approx(log_loss(true.ravel(), exact), rel=1e-9)
