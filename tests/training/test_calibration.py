"""Temperatures and thresholds: what they never change, and what they improve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from polyhead.decode import over_threshold, to_scores
from polyhead.schema import Head, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.calibration import TEMPERATURES, best_threshold, calibrate
from polyhead_training.evaluation.metrics import score_heads
from tests.tiny import SCHEMA

CONFIG = CalibrationConfig()


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


def test_a_head_without_mistakes_keeps_a_bounded_temperature() -> None:
    """However few and well told apart the rows are."""
    schema = Schema([Head(name="s", kind="single_label", labels=("a", "b"))])
    calibrated, _ = calibrate(np.array([[1, 0], [0, 1]], np.float32), np.array([[0], [1]], np.float32), schema, CONFIG)
    assert calibrated["s"].temperature == pytest.approx(TEMPERATURES[0], rel=0.01)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(60, 200))
def test_thresholds_find_at_least_what_a_half_finds(seed: int, rows: int) -> None:
    """Each label with enough positive rows has at least the F1 of 0.5 on the rows of the fit."""
    logits, labels = rows_of(seed, rows)
    calibrated, _ = calibrate(logits, labels, SCHEMA, CONFIG)
    scores, true = to_scores(logits, calibrated)[:, 3:7], labels[:, 1:5]
    thresholds = calibrated["mood"].thresholds
    assert thresholds is not None
    for i in np.flatnonzero(true.sum(axis=0) >= 10):
        fitted, half = (
            f1_score(true[:, i], over_threshold(scores[:, i], t), zero_division=0) for t in (thresholds[i], 0.5)
        )
        assert fitted >= half - 1e-12
    assert not np.isin(np.asarray(thresholds), scores.astype(np.float64)).any()


def test_a_threshold_lies_midway_between_scores() -> None:
    """Worked out by hand: both true rows score above 0.3, the false ones up to 0.2."""
    scores = np.array([0.1, 0.2, 0.3, 0.6], dtype=np.float32)
    assert best_threshold(scores, np.array([False, False, True, True])) == pytest.approx(0.25)


def test_rare_labels_share_a_threshold_and_absent_ones_keep_a_half() -> None:
    """One positive row says little of where its label's threshold should be."""
    schema = Schema([Head(name="m", kind="multi_label", labels=("a", "b", "absent"))])
    labels = np.zeros((30, 3), dtype=np.float32)
    labels[0, 0] = labels[1, 1] = 1
    logits = np.where(labels == 1, [[-1.0, -3.0, 0.0]], [[-2.0, -9.0, -9.0]]).astype(np.float32)
    thresholds = calibrate(logits, labels, schema, CalibrationConfig(temperature=False))[0]["m"].thresholds
    assert thresholds is not None
    assert thresholds[0] == thresholds[1]
    assert thresholds[2] == 0.5


def test_what_is_not_asked_for_stays() -> None:
    """Without temperature and thresholds, and without a known label, the schema is as before."""
    logits, labels = rows_of(0, 50)
    fixed = CalibrationConfig(temperature=False, thresholds="fixed")
    assert calibrate(logits, labels, SCHEMA, fixed)[0] == SCHEMA
    calibrated, summary = calibrate(logits, np.full_like(labels, math.nan), SCHEMA, CONFIG)
    assert calibrated == SCHEMA
    assert summary["topic"] == {"rows": 0, "temperature": 1.0, "before": {}, "after": {}}
    assert score_heads(logits, labels, calibrated)["topic"]["rows"] == 50


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(20, 100))
def test_micro_thresholds_find_at_least_what_a_half_finds(seed: int, rows: int) -> None:
    """Over all labels together, on the rows of the fit, with one threshold for all."""
    logits, labels = rows_of(seed, rows)
    calibrated, summary = calibrate(logits, labels, SCHEMA, CalibrationConfig(thresholds="micro_f1", temperature=False))
    assert summary["mood"]["after"]["micro_f1"] >= summary["mood"]["before"]["micro_f1"] - 1e-12
    assert len(set(calibrated["mood"].thresholds or ())) == 1
