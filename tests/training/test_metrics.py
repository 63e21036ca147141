"""Scores a head, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyhead.schema import Head, Schema
from polyhead_training.metrics import score_heads
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
    assert results["stars"] == {"rows": 2, "mae": pytest.approx(0.5), "rmse": pytest.approx(math.sqrt(0.5))}


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
