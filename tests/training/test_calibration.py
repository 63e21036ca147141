"""Temperatures and thresholds: what they never change, and what they improve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.metrics import f1_score, log_loss

from polyhead.decode import over_threshold, to_scores
from polyhead.schema import Head, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.calibration import (
    LOG_TEMPERATURE,
    TEMPERATURES,
    calibrate,
    describe_calibration,
)
from polyhead_training.evaluation.metrics import score_heads
from polyhead_training.evaluation.thresholds import best_threshold, fit_thresholds
from tests.tiny import SCHEMA

CONFIG = CalibrationConfig()
TAXONOMY = Schema(
    [
        Head(name="top", kind="single_label", labels=("a", "b")),
        Head(name="low", kind="single_label", labels=("x", "y", "z"), parent="top",
             parent_of={"x": "a", "y": "a", "z": "b"}),
    ]
)  # fmt: skip


def rows_of(seed: int, rows: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that say something of the labels, which are drawn."""
    random = np.random.default_rng(seed)
    topic, mood = random.integers(0, 3, (rows, 1)), random.random((rows, 4)) < (0.5, 0.3, 0.1, 0.02)
    logits = random.normal(size=(rows, SCHEMA.width)) + np.hstack([topic == np.arange(3), mood, mood[:, :1]])
    labels = np.hstack([topic, mood, random.normal(size=(rows, 1))]).astype(np.float32)
    return (scale * logits).astype(np.float32), labels


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 80), scale=st.floats(0.1, 30))
def test_calibration_improves_and_leaves_answers(seed: int, rows: int, scale: float) -> None:
    """No best label changes, and no negative log-likelihood gets worse, on the rows of the fit."""
    logits, labels = rows_of(seed, rows, scale)
    calibrated, summary = calibrate(logits, labels, SCHEMA, CONFIG)
    before, after = to_scores(logits, SCHEMA)[:, :3], to_scores(logits, calibrated)[:, :3]
    sure = np.sort(logits[:, :3])[:, 2] - np.sort(logits[:, :3])[:, 1] > 1e-3  # else float32's scores may be equal
    np.testing.assert_array_equal(before.argmax(axis=1)[sure], after.argmax(axis=1)[sure])
    for head in ("topic", "mood"):
        assert summary[head]["after"]["nll"] <= summary[head]["before"]["nll"] + 1e-6
    assert calibrated["stars"] == SCHEMA["stars"]


def test_a_temperature_is_found_again() -> None:
    """Labels drawn from the softmax of logits, given thrice too large, are fitted with a temperature of three."""
    random = np.random.default_rng(0)
    schema = Schema([Head(name="s", kind="single_label", labels=("a", "b", "c"))])
    logits = random.normal(size=(20_000, 3)) * 2
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)[:, None].astype(np.float32)
    calibrated, _ = calibrate((3 * logits).astype(np.float32), labels, schema, CONFIG)
    assert calibrated["s"].temperature == pytest.approx(3, rel=0.05)


def separable(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are always right, and sure of it."""
    labels = (np.arange(rows) % 2)[:, None].astype(np.float32)
    return np.hstack([1 - labels, labels]).astype(np.float32), labels


@pytest.mark.parametrize(("rows", "lowest", "highest"), [(2, 0.8, 1), (10, 0.5, 0.8), (10_000, *[TEMPERATURES[0]] * 2)])
def test_few_rows_without_a_mistake_say_little(rows: int, lowest: float, highest: float) -> None:
    """The temperature stays near 1 for a few rows, and within its bounds for many."""
    schema = Schema([Head(name="s", kind="single_label", labels=("a", "b"))])
    calibrated, _ = calibrate(*separable(rows), schema, CONFIG)
    assert lowest <= calibrated["s"].temperature <= 1.01 * highest


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_rows_of_one_answer_say_nothing(kind: str) -> None:
    """If all validation rows have the same class, or no label at all, nothing is fitted, and a note says so."""
    schema = Schema([Head(name="s", kind=kind, labels=("a", "b"))])
    labels = np.zeros((50, schema.label_width), dtype=np.float32)
    logits = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    calibrated, summary = calibrate(logits, labels, schema, CONFIG)
    assert calibrated == schema
    assert summary["s"]["notes"] == ["nothing is fitted, because all validation rows have the same answer"]
    assert summary["s"]["after"] == summary["s"]["before"]


def test_scores_before_are_the_metrics() -> None:
    """Before calibration, the few scores shown are those of the report."""
    logits, labels = rows_of(3, 100)
    _, summary = calibrate(logits, labels, SCHEMA, CONFIG)
    metrics = score_heads(logits, labels, SCHEMA)
    for head in ("topic", "mood"):
        for name, value in summary[head]["before"].items():
            assert value == pytest.approx(metrics[head][name], rel=1e-6), (head, name)


def test_scores_after_are_of_rows_that_were_not_fitted() -> None:
    """Each fifth of the rows, shuffled with seed 0, is answered with what the other four fifths chose."""
    logits, labels = rows_of(5, 200, scale=6.0)
    schema = Schema([SCHEMA["topic"]])
    logits, labels = logits[:, :3], labels[:, :1]
    _, summary = calibrate(logits, labels, schema, CONFIG)
    order = np.random.default_rng(0).permutation(200)
    logits, labels = logits[order], labels[order]
    scores, number = np.empty((200, 3)), np.arange(200) % 5
    for fold in range(5):
        others = number != fold

        def loss(temperature: float, others: np.ndarray = others) -> float:
            nll = log_loss(labels[others, 0], softmax(logits[others] / temperature, axis=1), normalize=False)
            return float(nll) + math.log(temperature) ** 2 / (2 * LOG_TEMPERATURE**2)

        grid = np.exp(np.linspace(*np.log(TEMPERATURES), 1000))
        scores[~others] = softmax(logits[~others] / min(grid, key=loss), axis=1)
    assert summary["topic"]["after"]["nll"] == pytest.approx(log_loss(labels[:, 0], scores), rel=1e-4)
    assert summary["topic"]["after"]["nll"] < summary["topic"]["before"]["nll"]


def test_a_threshold_lies_midway_between_scores() -> None:
    """Worked out by hand: both true rows score above 0.3, the false ones up to 0.2."""
    scores = np.array([0.1, 0.2, 0.3, 0.6], dtype=np.float32)
    assert best_threshold(scores, np.array([False, False, True, True])) == pytest.approx(0.25)


def test_a_rare_labels_threshold_is_near_that_of_all_labels() -> None:
    """With twenty positive rows it lies halfway between the logits, with none it is that of all labels; by hand."""
    true = np.zeros((100, 3), dtype=bool)
    true[:20, 0] = true[:40, 1] = True
    logits = np.where(true, [[0.0, 4.0, 0.0]], [[-2.0, 0.5, -9.0]])
    logits[0, 0] = 4.0  # a row that every threshold answers
    scores = expit(logits).astype(np.float32)
    own = [(expit(0) + expit(-2)) / 2, (expit(4) + expit(0.5)) / 2]
    # Over all labels: 41 right answers above 0.5 (F1 0.8); all 60 above -2 would come with 60 wrong ones.
    shared = own[1]
    thresholds = fit_thresholds(scores, true, per_label=True)
    assert thresholds[0] == pytest.approx(expit((logit(own[0]) + logit(shared)) / 2), rel=1e-5)
    assert thresholds[1] == pytest.approx(own[1], rel=1e-5)
    assert thresholds[2] == pytest.approx(shared, rel=1e-5)
    assert fit_thresholds(scores, true, per_label=False) == pytest.approx((shared,) * 3, rel=1e-5)


@pytest.mark.parametrize("per_label", [True, False])
def test_a_label_with_low_scores_is_answered_if_that_raises_f1(per_label: bool) -> None:
    """Worked out by hand: F1 at the threshold of all labels, 0.7, is 40 / 46, so more than 20 of 46 must be right."""
    true = np.zeros((100, 3), dtype=bool)
    true[:20, 0] = true[:3, 1] = true[:3, 2] = True
    scores = np.where(true, [[0.9, 0.2, 0.0]], [[0.5, 0.1, 0.0]]).astype(np.float32)
    scores[0:3, 2], scores[10:14, 2] = 0.1, 0.2  # of the best 7 rows of the last label, 3 are right
    thresholds = fit_thresholds(scores, true, per_label)
    assert thresholds[1] == pytest.approx(0.15)
    assert not over_threshold(scores[:, 2], thresholds[2]).any()


def test_no_label_is_answered_more_than_three_times_its_rows() -> None:
    """Whatever the scores are: at most 3 times its rows, and at most 3 rows if it has none; ties count together."""
    random = np.random.default_rng(0)
    true = random.random((500, 5)) < (0, 0.002, 0.01, 0.1, 0.5)
    rows = true.sum(axis=0)
    for scores in (
        random.random((500, 5)).astype(np.float32),  # they say nothing of the labels
        (0.9 + 0.1 * random.random((500, 5))).astype(np.float32),
        random.integers(0, 4, (500, 5)).astype(np.float32) / 4,
    ):
        for per_label in (True, False):
            answered = over_threshold(scores, fit_thresholds(scores, true, per_label)).sum(axis=0)
            assert (answered <= 3 * np.maximum(rows, 1)).all(), answered


def mixed_rows(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight labels that the logits tell, and two of a hundredth of the rows that they know nothing of."""
    random = np.random.default_rng(seed)
    true = random.random((rows, 10)) < np.array([0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.08, 0.05, 0.01, 0.01])
    logits = np.where(true, 1.6, -1.6) + 1.4 * random.normal(size=true.shape) - 0.5
    logits[:, 8:] = random.normal(size=(rows, 2)) - 2
    return logits.astype(np.float32), true.astype(np.float32)


@pytest.mark.parametrize("thresholds", ["f1", "micro_f1"])
@pytest.mark.parametrize("seed", range(5))
def test_an_unrelated_label_is_not_answered_everywhere(seed: int, thresholds: str) -> None:
    """276 rows choose; in 20,000 others micro F1 is not worse, and each label is answered at most 6 times its share."""
    schema = Schema([Head(name="m", kind="multi_label", labels=tuple("abcdefghij"))])
    calibrated, summary = calibrate(*mixed_rows(seed, 276), schema, CalibrationConfig(thresholds=thresholds))
    assert summary["m"]["after"]["micro_f1"] >= summary["m"]["before"]["micro_f1"]
    logits, labels = mixed_rows(seed + 1000, 20_000)
    before, after = (
        f1_score(labels, over_threshold(to_scores(logits, one), one["m"].thresholds or ()), average="micro")
        for one in (schema, calibrated)
    )
    assert after >= before - 0.005
    answered = over_threshold(to_scores(logits, calibrated), calibrated["m"].thresholds or ()).sum(axis=0)
    assert (answered <= 6 * labels.sum(axis=0)).all(), answered


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 120), thresholds=st.sampled_from(["f1", "micro_f1", "fixed"]))
def test_calibration_never_makes_the_headline_worse(seed: int, rows: int, thresholds: str) -> None:
    """In cross-fitted scores. What is not kept is said, and stays as it was."""
    logits, labels = rows_of(seed, rows)
    calibrated, summary = calibrate(logits, labels, SCHEMA, CalibrationConfig(thresholds=thresholds))
    for head, metric in (("topic", "accuracy"), ("mood", "micro_f1")):
        assert summary[head]["after"][metric] >= summary[head]["before"][metric]
    mood = calibrated["mood"]
    if summary["mood"]["after"]["micro_f1"] == summary["mood"]["before"]["micro_f1"]:
        assert mood.thresholds == (0.5,) * 4
        assert thresholds == "fixed" or summary["mood"]["notes"]
    assert mood.temperature == 1 or summary["mood"]["after"]["nll"] < summary["mood"]["before"]["nll"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(20, 60), scale=st.floats(0.5, 8))
def test_a_taxonomys_answers_do_not_get_worse(seed: int, rows: int, scale: float) -> None:
    """Temperatures weigh the levels of a path against each other, so they may change its labels."""
    random = np.random.default_rng(seed)
    low = random.integers(0, 3, rows)
    labels = np.stack([low == 2, low], axis=1).astype(np.float32)
    logits = random.normal(size=(rows, 5)) + np.hstack([np.eye(2)[(low == 2).astype(int)], np.eye(3)[low]])
    logits[:, :2] *= scale
    _, summary = calibrate(logits.astype(np.float32), labels, TAXONOMY, CONFIG)
    for head in ("top", "low"):
        assert summary[head]["after"]["accuracy"] >= summary[head]["before"]["accuracy"]


def test_heads_of_a_taxonomy_share_a_temperature_if_their_own_would_change_its_answers_for_the_worse() -> None:
    """One temperature changes no answer, so the scores become better without them."""
    random = np.random.default_rng(0)
    low = random.integers(0, 3, 400)
    labels = np.stack([low == 2, low], axis=1).astype(np.float32)
    logits = random.normal(size=(400, 5)) + np.hstack([np.eye(2)[(low == 2).astype(int)], np.eye(3)[low]])
    calibrated, summary = calibrate((3 * logits).astype(np.float32), labels, TAXONOMY, CONFIG)
    assert calibrated["top"].temperature == calibrated["low"].temperature > 2
    assert summary["top"]["notes"] == [
        "the heads of this taxonomy share a temperature: their own would make answers worse"
    ]
    for head in ("top", "low"):
        before, after = summary[head]["before"], summary[head]["after"]
        assert after["accuracy"] == before["accuracy"]
        assert after["nll"] < 0.8 * before["nll"]


def test_the_lines_say_before_and_after() -> None:
    """One line per head, with the number of rows; then what was not kept."""
    logits, labels = rows_of(0, 100)
    _, summary = calibrate(logits, labels, SCHEMA, CONFIG)
    lines = describe_calibration(summary)
    before, after = (summary["topic"][when]["nll"] for when in ("before", "after"))
    assert "topic, cross-fitted on 100 validation rows: ece " in lines[0]
    assert f"nll {before:.3f} → {after:.3f}" in lines[0]
    notes = [f"{head}: {note}" for head in ("topic", "mood") for note in summary[head]["notes"]]
    assert [line for line in lines if "cross-fitted on" not in line] == notes


def test_what_is_not_asked_for_stays() -> None:
    """Without temperature and thresholds, and without a known label, the schema is as before."""
    logits, labels = rows_of(0, 50)
    fixed = CalibrationConfig(temperature=False, thresholds="fixed")
    assert calibrate(logits, labels, SCHEMA, fixed)[0] == SCHEMA
    calibrated, summary = calibrate(logits, np.full_like(labels, math.nan), SCHEMA, CONFIG)
    assert calibrated == SCHEMA
    assert summary["topic"] == {"rows": 0, "temperature": 1.0, "before": {}, "after": {}, "notes": []}
    assert score_heads(logits, labels, calibrated)["topic"]["rows"] == 50


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(20, 100))
def test_micro_thresholds_are_one_threshold(seed: int, rows: int) -> None:
    """Labels share it. One that it would answer too often has a higher one; one never answered perhaps a lower one."""
    logits, labels = rows_of(seed, rows)
    scores, true = to_scores(logits, SCHEMA)[:, 3:7], labels[:, 1:5] == 1
    thresholds = np.array(fit_thresholds(scores, true, per_label=False))
    shared = best_threshold(scores.ravel(), true.ravel())
    answered = over_threshold(scores, shared).sum(axis=0)
    assert (answered[thresholds > shared] > 3 * np.maximum(true.sum(axis=0), 1)[thresholds > shared]).all()
    assert (answered[thresholds < shared] == 0).all()
