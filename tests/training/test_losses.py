"""Losses: weights, smoothing, ranges and missing labels, against torch's own and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from polyhead.schema import Head, Schema
from polyhead_training.config import HeadConfig
from polyhead_training.errors import ConfigError
from polyhead_training.model.losses import OUT_OF_SCOPE, LossTerm, classification_loss, label_counts, loss_terms

NAN = math.nan
SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("a", "b", "c")),
        Head(name="tags", kind="multi_label", labels=("x", "y")),
        Head(name="stars", kind="regression", y_range=(1, 5)),
    ]
)


def logits(rows: int, width: int) -> torch.Tensor:
    """Random logits."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def test_class_weights_and_smoothing_are_torchs() -> None:
    """A single_label term is CrossEntropyLoss with its weight and label_smoothing, missing rows left out."""
    term = LossTerm("single_label", 3, weight=2.0, label_weights=(1.0, 3.0, 0.5), label_smoothing=0.1)
    scores, labels = logits(4, 3), torch.tensor([0.0, 1.0, NAN, 2.0])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]), label_smoothing=0.1)
    expected = 2 * loss(scores[[0, 1, 3]], torch.tensor([0, 1, 2]))
    torch.testing.assert_close(classification_loss(scores, labels, [term]), expected)


def test_positive_weights_and_smoothing_are_torchs() -> None:
    """A multi_label term is BCEWithLogitsLoss with pos_weight, on targets moved half the smoothing inwards."""
    term = LossTerm("multi_label", 2, label_weights=(4.0, 0.5), label_smoothing=0.2)
    scores, labels = logits(3, 2), torch.tensor([[0, 1], [1, 1], [0, 0.0]])
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([4.0, 0.5]))(scores, labels * 0.8 + 0.1)
    torch.testing.assert_close(classification_loss(scores, labels, [term]), expected)


def test_a_range_bounds_what_a_regression_is_compared_with() -> None:
    """Logit 0 between 1 and 5 is 3, two away from 5."""
    term = LossTerm("regression", 1, y_range=(1, 5))
    assert classification_loss(torch.zeros(1, 1), torch.tensor([[5.0]]), [term]).item() == pytest.approx(4)


def test_a_scaled_regression_is_compared_in_spreads() -> None:
    """Logit 0.5 means 105 with center 100 and spread 10: 120 is 1.5 spreads away. The weight is a factor of that."""
    term = LossTerm("regression", 1, weight=3.0, target_scale=(100, 10), y_range=(0, 110))
    loss = classification_loss(torch.full((1, 1), 0.5), torch.tensor([[120.0]]), [term])
    assert loss.item() == pytest.approx(3 * 1.5**2)


def test_a_wrong_number_counts_linearly() -> None:
    """Beyond five spreads each further one costs 10: no row can outweigh all others, nor overflow the loss."""
    term = LossTerm("regression", 1, target_scale=(0, 1))
    losses = [
        classification_loss(torch.zeros(1, 1), torch.tensor([[target]]), [term]).item() for target in (4.0, 5.0, 8.0)
    ]
    assert losses == pytest.approx([16, 25, 25 + 3 * 10])
    values = torch.zeros(2, 1).requires_grad_()
    classification_loss(values, torch.tensor([[3e38], [-3e38]]), [term]).backward()
    assert values.grad.tolist() == [[-5], [5]]  # each of two rows: 10, divided by two


def test_a_scale_costs_no_digit_of_a_target() -> None:
    """1,700,000,128 is the next number of float32 after 1,700,000,000, one spread away."""
    term = LossTerm("regression", 1, target_scale=(1_700_000_000, 128))
    loss = classification_loss(torch.zeros(1, 1), torch.tensor([[1_700_000_128.0]]), [term])
    assert loss.item() == pytest.approx(1)


def test_the_schemas_scale_is_the_losss() -> None:
    """With and without a config."""
    schema = Schema([Head(name="price", kind="regression", target_scale=(98_000, 27_000), y_range=(0, 1e6))])
    for heads in ([], [HeadConfig(name="price", kind="regression")]):
        (term,) = loss_terms(schema, heads)
        assert (term.target_scale, term.y_range) == ((98_000, 27_000), (0, 1e6))


def test_batches_divided_by_the_whole_steps_counts_sum_to_its_loss() -> None:
    """Rows cut in two at any place, missing labels and class weights included: the parts sum to the whole."""
    terms = [
        LossTerm("single_label", 3, label_weights=(1.0, 2.0, 5.0)),
        LossTerm("multi_label", 2, weight=3.0),
        LossTerm("regression", 1),
    ]
    labels = torch.tensor([[0, 1, 0, 2.5], [NAN, 0, 0, NAN], [2, NAN, NAN, 1], [1, 1, 1, NAN], [NAN, 0, 1, 0.0]])
    scores = logits(5, 6)
    whole, counts = classification_loss(scores, labels, terms), label_counts(labels, terms)
    assert counts.tolist() == [1 + 5 + 2, 4, 3]
    for cut in range(1, 5):
        parts = sum(
            classification_loss(scores[rows], labels[rows], terms, counts) for rows in (slice(cut), slice(cut, 5))
        )
        torch.testing.assert_close(parts, whole)


def test_a_head_without_any_label_adds_nothing() -> None:
    """Its loss is zero and its gradients are zeros, so that no process of several waits for it."""
    scores = logits(2, 3).requires_grad_()
    loss = classification_loss(scores, torch.full((2, 1), NAN), [LossTerm("single_label", 3)])
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(2, 3))


def test_half_precision_logits_lose_no_label() -> None:
    """Years told by bfloat16 logits: 2000 from 1999 is one away, though bfloat16 has nothing between 1992 and 2000."""
    scores = torch.full((1, 1), 2000.0, dtype=torch.bfloat16)
    loss = classification_loss(scores, torch.tensor([[1999.0]]), [LossTerm("regression", 1)])
    assert (loss.dtype, loss.item()) == (torch.float32, 1)


def test_half_precision_logits_take_large_weights() -> None:
    """A weight above float16's largest number is no infinity."""
    term = LossTerm("multi_label", 1, label_weights=(1e5,))
    loss = classification_loss(torch.zeros(1, 1, dtype=torch.float16), torch.ones(1, 1), [term])
    assert loss.item() == pytest.approx(1e5 * math.log(2))


def test_balanced_weights_are_counted_from_the_labels() -> None:
    """n / (labels * rows) a class and negative / positive rows a label; rows without a label do not count."""
    labels = np.array([[0, 1, 0, 3], [0, 0, 0, 3], [1, 0, 1, 3], [NAN, 0, 1, 3], [0, 0, 1, 3]], dtype=np.float32)
    heads = [
        HeadConfig(name="topic", kind="single_label", class_weights="balanced"),
        HeadConfig(name="tags", kind="multi_label", positive_weights="balanced", label_smoothing=0.1),
        HeadConfig(name="stars", kind="regression", y_range=(1, 5)),
    ]
    topic, tags, stars = loss_terms(SCHEMA, heads, labels)
    assert topic.label_weights == pytest.approx((4 / 9, 4 / 3, 4 / 3))  # no row has c: it counts as one
    assert tags.label_weights == pytest.approx((4, 2 / 3))
    assert (tags.label_smoothing, stars.y_range) == (0.1, (1, 5))


def test_given_weights_name_every_label() -> None:
    """Weights stand in the labels' order; a missing, an unknown or a negative one is an error that names it."""

    def terms(weights: dict[str, float]) -> list[LossTerm]:
        schema = Schema([SCHEMA["topic"]])
        return loss_terms(schema, [HeadConfig(name="topic", kind="single_label", class_weights=weights)])

    assert terms({"c": 3, "a": 1, "b": 2})[0].label_weights == (1, 2, 3)
    with pytest.raises(ConfigError, match=r"'topic': class_weights needs a weight for each label.*'c', 'd'"):
        terms({"a": 1, "b": 2, "d": 3})
    with pytest.raises(ConfigError, match=r"needs a weight for each label.*'a', 'b', 'c'"):
        terms({})
    with pytest.raises(ConfigError, match=r"positive numbers, got \{'b': -2"):
        terms({"a": 1, "b": -2, "c": 3})


@pytest.mark.parametrize("label_weights", [None, (2.0, 3.0)])
def test_rows_out_of_scope_want_equal_scores(label_weights: tuple[float, ...] | None) -> None:
    """Their loss is the cross-entropy with equal shares, and they count as one row; worked out by hand."""
    terms = [LossTerm("single_label", 2, label_weights=label_weights)]
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]], requires_grad=True)
    labels = torch.tensor([[0.0], [OUT_OF_SCOPE]])
    weight = 2.0 if label_weights else 1.0
    expected = (weight * math.log(4) - (math.log(1 / 4) + math.log(3 / 4)) / 2) / (weight + 1)
    loss = classification_loss(logits, labels, terms)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1, 0] < 0 < logits.grad[1, 1]
