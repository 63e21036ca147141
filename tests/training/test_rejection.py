"""Rejection: bounds for a coverage and for a precision, what they cost on other rows, and texts out of scope."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from polyhead.checkpoint import read_checkpoint
from polyhead.decode import Scores
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_training.config import CalibrationConfig, HeadConfig
from polyhead_training.evaluation.calibration import calibrate, describe_calibration
from polyhead_training.evaluation.metrics import answers_of, score_answers
from polyhead_training.evaluation.page import page_heads
from polyhead_training.evaluation.rejection import (
    bound_of_coverage,
    bound_of_precision,
    fit_rejections,
    out_of_scope_scores,
    risk_coverage,
)
from tests.training.evaluations import evaluation_of
from tests.training.tiny_run import metrics, run, write_run

PLAIN = Schema([Head(name="s", kind="single_label", labels=("x", "y"))])
TREE = Schema(
    [
        Head(name="low", kind="single_label", labels=("x", "y", "z"), parent="top",
             parent_of={"x": "a", "y": "a", "z": "b"}),
        Head(name="top", kind="single_label", labels=("a", "b")),
    ]
)  # fmt: skip
CONFIG = CalibrationConfig(temperature=False)


def scores_of(*first: float) -> Scores:
    """Scores of PLAIN, by the score of the first label."""
    return np.array([[one, 1 - one] for one in first], dtype=np.float32)


def float32s(*values: float) -> Scores:
    return np.array(values, dtype=np.float32)


def test_the_bound_of_a_coverage_lies_between_two_scores() -> None:
    """Three of four rows are answered, so it lies midway between the third score and the fourth; worked out by hand."""
    assert bound_of_coverage(float32s(0.5, 1.0, 0.25, 0.75), 3) == 0.375
    assert bound_of_coverage(float32s(0.5, 1.0, 0.25, 0.75), 4) == 0.0


def test_equal_scores_are_answered_together() -> None:
    """At least as many rows are answered as were asked for, never fewer."""
    assert bound_of_coverage(float32s(1.0, 0.5, 0.5, 0.5, 0.25), 2) == 0.375
    assert bound_of_coverage(float32s(0.5, 0.5, 0.5), 1) == 0.0


@given(
    scores=st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=1, max_size=40),
    share=st.floats(0.01, 0.99),
)
def test_a_coverage_is_kept(scores: list[float], share: float) -> None:
    """At least the share is answered, and with the next higher score as the bound it would be less."""
    found = float32s(*scores)
    answered = math.ceil(share * len(found))
    bound = bound_of_coverage(found, answered)
    assert (found >= bound).sum() >= answered
    assert bound == 0 or (found > found[found >= bound].min()).sum() < answered


def test_the_bound_of_a_precision_answers_as_many_as_it_can() -> None:
    """Ten answers, the 8th and the 10th are wrong. One wrong answer more counts; worked out by hand.

    With 7 answers it is 1 wrong of 8, with 8 it is 2 of 9, with 9 it is 2 of 10, with 10 it is 3 of 11.
    """
    scores = float32s(*(1 - place / 16 for place in range(10)))
    right = np.array([True] * 7 + [False, True, False])
    assert bound_of_precision(scores, right, 0.8) == 1 - 8.5 / 16
    assert bound_of_precision(scores, right, 0.85) == 1 - 6.5 / 16
    assert bound_of_precision(scores, right, 0.7) == 0.0
    assert bound_of_precision(scores, right, 0.9) is None


def test_a_few_lucky_rows_promise_nothing() -> None:
    """Of 0.98 one speaks only with 49 right answers in a row: with a wrong one more, 1 of 50 is wrong."""
    for rows, is_reached in ((48, False), (49, True)):
        bound = bound_of_precision(np.linspace(1, 0.5, rows, dtype=np.float32), np.ones(rows, bool), 0.98)
        assert (bound == 0.0) if is_reached else (bound is None)


@pytest.mark.parametrize("precision", [0.85, 0.9, 0.95])
def test_a_precision_holds_on_new_rows(precision: float) -> None:
    """Over many draws of 400 validation rows, the mean precision on new rows is the wanted one, or a little more."""
    random = np.random.default_rng(0)

    def draw(rows: int) -> tuple[Scores, Any]:
        scores = random.uniform(0.5, 1, rows).astype(np.float32)
        return scores, random.random(rows) < scores

    new_scores, new_right = draw(100_000)
    reached = []
    for _ in range(200):
        bound = bound_of_precision(*draw(400), precision)
        if bound is not None:
            reached.append(new_right[new_scores >= bound].mean())
    assert len(reached) > 150
    assert precision - 0.003 <= np.mean(reached) <= precision + 0.02


def test_rows_that_the_level_above_rejects_count_as_rejected() -> None:
    """A quarter is rejected at the top. The level below rejects one row more for 0.5, and none for 0.75."""
    top = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    low = np.array([[0.5, 0.3, 0.2], [0.75, 0.125, 0.125], [0.625, 0.25, 0.125], [0.875, 0.0625, 0.0625]])
    scores = np.hstack([low, top]).astype(np.float32)
    labels = np.zeros((4, 2), np.float32)

    def fitted(coverage: float) -> Schema:
        wanted = {"top": 0.65, "low": {"coverage": coverage}}
        return fit_rejections(scores, labels, TREE, wanted, pytest.fail)

    assert fitted(0.5)["low"].reject_below == (0.5 + 0.625) / 2
    assert fitted(0.75)["low"].reject_below == 0.0
    found = score_answers(scores, labels, fitted(0.5))
    assert (found["top"]["coverage"], found["low"]["coverage"]) == (0.75, 0.5)


def test_coverage_and_accuracy_of_the_answered_are_those_of_scikit_learn() -> None:
    """Both are of the rows with a label; accuracy itself is of all of them, as if nothing was rejected."""
    random = np.random.default_rng(1)
    first = random.random(300).astype(np.float32)
    scores = scores_of(*first)
    labels = (random.random((300, 1)) > first[:, None]).astype(np.float32)
    labels[::7] = math.nan
    known = ~np.isnan(labels[:, 0])
    schema = Schema([PLAIN["s"].model_copy(update={"reject_below": 0.7})])
    found = score_answers(scores, labels, schema)["s"]
    answered = known & (scores.max(axis=1) >= 0.7)
    best = scores.argmax(axis=1)
    assert found["coverage"] == pytest.approx(answered.sum() / known.sum())
    assert found["answered_accuracy"] == pytest.approx(accuracy_score(labels[answered, 0], best[answered]))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels[known, 0], best[known]))
    assert "coverage" not in score_answers(scores, labels, PLAIN)["s"]


def test_risk_over_coverage() -> None:
    """The share that is answered and the accuracy of it, from the surest row on; equal scores are one step."""
    scores, labels = scores_of(0.9, 0.2, 0.7, 0.7, 0.6), float32s(0, 1, 0, 1, 1)[:, None]
    (answers,) = answers_of(scores, labels, PLAIN)
    share, right = risk_coverage(answers)
    assert share.tolist() == pytest.approx([0.2, 0.4, 0.8, 1.0])
    assert right.tolist() == pytest.approx([1.0, 1.0, 0.75, 0.6])


def test_out_of_scope_rows_are_measured_by_scikit_learn() -> None:
    """AUROC of the answered score, labelled rows against those out of scope; and how many of these are rejected."""
    random = np.random.default_rng(2)
    scores = scores_of(*random.uniform(0.5, 1, 60))
    outside = np.arange(60) % 3 == 0
    labels = np.where(outside, math.nan, 0.0).astype(np.float32)[:, None]
    labels[1] = math.nan  # unknown, but not out of scope: it counts in nothing
    schema = Schema([PLAIN["s"].model_copy(update={"reject_below": 0.7})])
    counted = np.arange(60) != 1
    found = out_of_scope_scores(scores, labels, schema, {"s": outside})["s"]
    best = scores.max(axis=1)
    assert found["out_of_scope_rows"] == 20
    assert found["out_of_scope_auroc"] == pytest.approx(roc_auc_score(~outside[counted], best[counted]))
    assert found["out_of_scope_rejected"] == pytest.approx((best[outside] < 0.7).mean())
    assert "out_of_scope_rejected" not in out_of_scope_scores(scores, labels, PLAIN, {"s": outside})["s"]


def logits_of(rows: int) -> tuple[Scores, Scores]:
    """Logits of PLAIN whose softmax is calibrated."""
    random = np.random.default_rng(3)
    logits = random.normal(scale=2, size=(rows, 2)).astype(np.float32)
    share = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    return logits, (random.random(rows) > share).astype(np.float32)[:, None]


def test_calibration_shows_what_rejection_costs_on_other_rows() -> None:
    """Coverage is 1 before; after, it is near the wanted one in folds that the bound was not fitted on."""
    logits, labels = logits_of(1000)
    schema, summary = calibrate(logits, labels, PLAIN, CONFIG, {"s": {"coverage": 0.8}})
    found = summary["s"]
    assert found["reject_below"] == schema["s"].reject_below
    assert found["before"]["coverage"] == 1.0
    assert found["before"]["answered_accuracy"] == found["after"]["accuracy"]
    assert found["after"]["coverage"] == pytest.approx(0.8, abs=0.03)
    assert found["after"]["answered_accuracy"] > found["before"]["answered_accuracy"]
    lines = describe_calibration(summary)
    assert "coverage 1.000 → 0.8" in lines[0]
    assert lines[1] == f"s: rejects an answer whose score is below {schema['s'].reject_below:.4g}"


def test_a_bound_may_be_one_of_certainty() -> None:
    """It is fitted on certainties, and `risk_coverage` orders by them; the best score says nothing here."""
    head = Head(name="s", kind="single_label", labels=("x", "y", "z"), reject_by="certainty")
    rest = np.array([0.0, 0.04, 0.09, 0.16])
    scores = np.stack([np.full(4, 0.64), 0.36 - rest, rest], axis=1).astype(np.float32)
    labels = float32s(0, 0, 0, 1)[:, None]
    certainties = 1 / (0.8 + np.sqrt(0.36 - rest) + np.sqrt(rest)) ** 2
    schema = fit_rejections(scores, labels, Schema([head]), {"s": {"coverage": 0.5}}, pytest.fail)
    assert schema["s"].reject_below == pytest.approx((certainties[1] + certainties[2]) / 2, abs=2e-6)
    found = score_answers(scores, labels, schema)["s"]
    assert (found["coverage"], found["answered_accuracy"]) == (0.5, 1.0)
    (answers,) = answers_of(scores, labels, schema)
    assert risk_coverage(answers)[1].tolist() == [1.0, 1.0, 1.0, 0.75]


def test_a_precision_that_cannot_be_reached_is_a_note() -> None:
    """The head then rejects nothing, and the note says what the surest rows reach."""
    logits, labels = logits_of(200)
    schema, summary = calibrate(0 * logits, labels, PLAIN, CONFIG, {"s": {"precision": 0.99}})
    assert schema["s"].reject_below is None
    assert "coverage" not in summary["s"]["after"]
    assert (
        "no reject_below is stored: precision 0.990 cannot be reached on 200 validation rows"
        in summary["s"]["notes"][-1]
    )


def test_a_number_is_stored_as_it_is() -> None:
    """Also without validation rows; a fitted bound needs some."""
    empty = np.empty((0, 2), np.float32), np.empty((0, 1), np.float32)
    assert calibrate(*logits_of(50), PLAIN, CONFIG, {"s": 0.4})[0]["s"].reject_below == 0.4
    assert calibrate(*empty, PLAIN, CONFIG, {"s": 0.4})[0]["s"].reject_below == 0.4
    schema, summary = calibrate(*empty, PLAIN, CONFIG, {"s": {"coverage": 0.9}})
    assert schema["s"].reject_below is None
    assert "no validation row has a label" in summary["s"]["notes"][-1]


@pytest.mark.parametrize(
    ("reject", "kind"),
    [
        ({}, "single_label"),
        ({"coverage": 0.9, "precision": 0.9}, "single_label"),
        ({"coverage": 1.0}, "single_label"),
        ({"recall": 0.9}, "single_label"),
        (1.5, "single_label"),
        (True, "single_label"),
        (0.5, "multi_label"),
    ],
)
def test_a_wrong_reject_is_refused(reject: object, kind: str) -> None:
    """It is coverage or precision, between 0 and 1, or a score; of single_label heads."""
    with pytest.raises(ValueError, match="reject"):
        HeadConfig.model_validate({"name": "s", "kind": kind, "reject": reject})


def test_a_run_learns_from_rows_out_of_scope_and_measures_them(tmp_path: Path) -> None:
    """They are no label; the bound and what it rejects are in checkpoint, golden rows, metrics and report."""
    config = write_run(tmp_path, more="[report]\nbaselines = false")
    text = config.read_text().replace(
        'name = "topic"\nkind = "single_label"',
        'name = "topic"\nkind = "single_label"\nout_of_scope = "neither"\nreject = { coverage = 0.75 }',
    )
    config.write_text(text)
    with (tmp_path / "rows.jsonl").open("a") as rows:
        for word in ("stones", "clouds", "rivers"):
            rows.write(json.dumps({"text": f"{word} sleep", "topic": "neither", "stars": None}) + "\n")
    result = run(config)
    assert result.exit_code == 0, result.output
    assert "3 of 19 train rows are out of the scope of head 'topic': they teach it that no label fits" in result.output
    assert (
        "3 of 19 validation rows are out of the scope of head 'topic': they measure what it does not" in result.output
    )
    assert "measure nothing" not in result.output
    checkpoint = read_checkpoint(tmp_path / "out")
    head = checkpoint.schema["topic"]
    assert head.labels == ("cats", "dogs")
    assert head.reject_below is not None
    assert any(row.heads is not None and "label" in row.heads["topic"] for row in checkpoint.golden())
    found = metrics(tmp_path / "out")["validation"]["topic"]
    assert (found["rows"], found["out_of_scope_rows"]) == (16, 3)
    assert found["coverage"] >= 0.75
    table = pyarrow.parquet.read_table(tmp_path / "out" / "report" / "predictions.parquet").to_pylist()
    assert sum(not row["topic_rejected"] for row in table if row["topic_true"]) / 16 == found["coverage"]
    assert all(row["topic_label"] in head.labels for row in table)
    answers = Predictor.load(tmp_path / "out", precision="fp32").predict([row["text"] for row in table])
    assert [one["heads"]["topic"]["label"] is None for one in answers] == [row["topic_rejected"] for row in table]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "3 texts belong to none of the labels" in page
    assert "Accuracy of what is answered" in page


def test_the_report_says_what_is_rejected() -> None:
    """In words, per head; without rejection and out-of-scope texts it says nothing."""
    schema = Schema([PLAIN["s"].model_copy(update={"reject_below": 0.7})])
    evaluation, _ = evaluation_of(schema, 40)
    lost = (evaluation.scores.max(axis=1) < 0.7).mean()
    (head,) = page_heads(evaluation, None)
    assert 0 < lost < 1
    assert head["rejection"].startswith(f"{lost:.1%} of the rows get no label because its score is below 0.700; ")
    (head,) = page_heads(evaluation_of(PLAIN, 40)[0], None)
    assert head["rejection"] == ""
