"""Mixing: n-grams count where they help, as much as they help, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from polyhead.decode import to_scores
from polyhead.schema import Head, Schema
from polyhead_training.evaluation.linear_model import LinearModel
from polyhead_training.evaluation.mixing import Mix, describe_mix, mix

SINGLE = Head(name="topic", kind="single_label", labels=("a", "b", "c"))
MULTI = Head(name="tags", kind="multi_label", labels=("x", "y"))
NUMBER = Head(name="price", kind="regression", target_scale=(100.0, 10.0))
Array = NDArray[np.float32]


def mixed(head: Head, network: Array, linear: Array, labels: Array) -> Mix:
    """The mix of one head, of which the linear model knows all labels."""
    schema = Schema([head])
    model = LinearModel(schema)
    model.is_whole = {head.name}
    return mix(network.astype(np.float32), linear.astype(np.float32), labels.astype(np.float32), schema, model)


def weight_of(found: Mix) -> float:
    """Of the only head; 0 if n-grams do not help it."""
    return next((head["weight"] for head in found.summary.values()), 0.0)


def drawn(rows: int, seed: int = 0) -> tuple[np.random.Generator, Array, Array]:
    """A source of numbers, and two independent views of the same three labels as logits."""
    draw = np.random.default_rng(seed)
    one, other = (draw.standard_normal((rows, 3)) * 1.5 for _ in range(2))
    return draw, one, other


def test_the_weight_of_independent_views() -> None:
    """Labels drawn from softmax(one + 2 * other) give the weight 2."""
    draw, one, other = drawn(20_000)
    shares = softmax(one + 2 * other, axis=1)
    labels = (draw.random((len(one), 1)) > shares.cumsum(axis=1)).sum(axis=1, keepdims=True)
    found = mixed(SINGLE, one, other, labels)
    assert weight_of(found) == pytest.approx(2, rel=0.05)
    assert found.summary["topic"]["after"] < found.summary["topic"]["before"]
    assert found.schema["topic"].temperature == 1
    np.testing.assert_allclose(
        found.logits(one.astype(np.float32), other.astype(np.float32)), one + weight_of(found) * other, atol=1e-5
    )


def test_multi_label_has_one_weight() -> None:
    """Labels drawn from sigmoid(one + 0.5 * other)."""
    draw, one, other = drawn(20_000)
    one, other = one[:, :2], other[:, :2]
    labels = draw.random(one.shape) < expit(one + 0.5 * other)
    assert weight_of(mixed(MULTI, one, other, labels)) == pytest.approx(0.5, rel=0.1)


def test_a_regression_gets_the_scale_of_least_squares() -> None:
    """The number 3 + 100 + 10 * (0.5 one + 0.25 other) is found exactly, in the unit of the data."""
    _, one, other = drawn(500)
    one, other = one[:, :1], other[:, :1]
    labels = 103 + 10 * (0.5 * one + 0.25 * other)
    found = mixed(NUMBER, one, other, labels)
    assert weight_of(found) == pytest.approx(0.5)
    assert found.schema["price"].target_scale == pytest.approx((103, 5))
    logits = found.logits(one.astype(np.float32), other.astype(np.float32))
    np.testing.assert_allclose(to_scores(logits, found.schema), labels, rtol=1e-5)


@pytest.mark.parametrize("head", [SINGLE, MULTI, NUMBER])
def test_noise_counts_nothing(head: Head) -> None:
    """N-grams that say nothing are left out, and the head stays as it is."""
    draw, one, other = drawn(400, seed=3)
    one, other = one[:, : head.width] * 3, other[:, : head.width]
    labels = {
        "topic": one.argmax(axis=1)[:, None],
        "tags": draw.random(one.shape) < expit(one),
        "price": 100 + 10 * one,
    }[head.name]
    found = mixed(head, one, other, labels)
    assert weight_of(found) < 0.1
    assert found.ngrams is None
    if not weight_of(found):
        assert found.schema[head.name] == head
        assert describe_mix(found) == [f"{head.name}: the network alone, because n-grams do not help"]


def test_a_useless_network_leaves_the_word_to_the_n_grams() -> None:
    """Their weight becomes large enough that the network's noise changes next to nothing."""
    draw, one, other = drawn(2_000)
    labels = (draw.random((len(one), 1)) > softmax(3 * other, axis=1).cumsum(axis=1)).sum(axis=1, keepdims=True)
    found = mixed(SINGLE, one, other, labels)
    logits = found.logits(one.astype(np.float32), other.astype(np.float32))
    assert (logits.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.97


def test_unknown_labels_do_not_count() -> None:
    """Rows without a label give the same weight as if they were not there; few labels give none."""
    draw, one, other = drawn(300)
    labels = (one + other).argmax(axis=1)[:, None].astype(np.float32)
    alone = mixed(SINGLE, one, other, labels)
    more = np.full((100, 1), math.nan)
    found = mixed(
        SINGLE,
        np.concatenate([one, draw.standard_normal((100, 3))]),
        np.concatenate([other, draw.standard_normal((100, 3))]),
        np.concatenate([labels, more]),
    )
    assert weight_of(found) == pytest.approx(weight_of(alone), rel=1e-3)
    few = np.where(np.arange(300)[:, None] < 9, labels, math.nan)
    assert weight_of(mixed(SINGLE, one, other, few)) == 0
