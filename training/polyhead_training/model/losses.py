"""The loss: a weighted sum of one term per head, each a mean over the rows that have a label for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import HeadConfig
from polyhead_training.errors import ConfigError

IGNORED = -100  # the class index that PyTorch's cross-entropy leaves out
OUT_OF_SCOPE = -2.0  # in place of the class index of a row that belongs to none of the labels
# Errors of more spreads than this count linearly instead of squared (Huber 1964), so that a wrong number in the data
# does not outweigh all other rows and heads. See docs/decisions/0025-targets-and-thresholds.md.
OUTLIER = 5.0


@dataclass(frozen=True)
class LossTerm:
    """One head's part of the loss.

    Attributes:
        kind: decides between cross-entropy, binary cross-entropy with logits and squared error.
        width: the number of logits.
        weight: factor of its mean.
        label_weights: weights of each label's rows (single_label) or of each label's positive rows (multi_label).
        label_smoothing: the share of a target that is spread over all labels (Szegedy et al. 2016).
        target_scale: a regression's center and spread: the logit is compared with ``(target - center) / spread``.
        y_range: a regression's lowest and highest value. Without a target_scale its value is a sigmoid of the logit
            between them.
    """

    kind: HeadKind
    width: int
    weight: float = 1.0
    label_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    target_scale: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None

    @property
    def label_width(self) -> int:
        """The number of its columns in the label matrix."""
        return self.width if self.kind == HeadKind.MULTI_LABEL else 1


def loss_terms(
    schema: Schema, heads: Sequence[HeadConfig] = (), labels: NDArray[np.float32] | None = None
) -> list[LossTerm]:
    """The loss of a schema's heads.

    Args:
        heads: the config of each head; without it, plain terms.
        labels: of the training rows, ``(n, sum of label widths)``; ``balanced`` weights are counted from them.

    Raises:
        ConfigError: weights name an unknown label, lack a label, or are not positive.
    """
    if not heads:
        return [
            LossTerm(head.kind, head.width, head.weight, target_scale=head.target_scale, y_range=head.y_range)
            for head in schema
        ]
    terms = []
    for head, config in zip(schema, heads, strict=True):
        weights = _label_weights(head, config, None if labels is None else labels[:, schema.label_columns[head.name]])
        smoothing = config.label_smoothing
        terms.append(LossTerm(head.kind, head.width, head.weight, weights, smoothing, head.target_scale, head.y_range))
    return terms


def constructor_loss_terms(
    is_multilabel: bool, is_multihead: bool, head_class_sizes: Sequence[int], head_weights: Sequence[float]
) -> list[LossTerm]:
    """What the constructor arguments of that_nlp_library mean. Only here, heads are modes."""
    if is_multilabel and not is_multihead:
        return [LossTerm(HeadKind.MULTI_LABEL, sum(head_class_sizes))]
    one_of_n = [HeadKind.REGRESSION if size == 1 else HeadKind.SINGLE_LABEL for size in head_class_sizes]
    kinds = [HeadKind.MULTI_LABEL] * len(head_class_sizes) if is_multilabel else one_of_n
    return [LossTerm(*term) for term in zip(kinds, head_class_sizes, head_weights, strict=True)]


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, terms: Sequence[LossTerm], counts: torch.Tensor | None = None
) -> torch.Tensor:
    """The weighted sum of the heads' mean losses: cross-entropy, binary cross-entropy with logits, squared error.

    The squared error is in the unit of `LossTerm.target_scale`: 1 is what always answering the mean would cost.

    It is computed in float32 whatever the logits are: half precision cannot hold numbers such as 1999 or 100,000.

    Args:
        logits: ``(n, sum of widths)``.
        labels: ``(n, sum of label widths)`` or, for one column, ``(n,)``: a class index, a number, or 0/1 per label.
            NaN means that the row has no label for that head and does not count in it. As a class index, so does -100,
            which PyTorch's cross-entropy ignores.
            OUT_OF_SCOPE as a class index means that all labels shall have the same score (outlier exposure, Hendrycks
            et al. 2019, arXiv:1812.04606).
        counts: the divisor of each head's sum, ``(heads,)``: `label_counts` of a whole step, whose rows may be spread
            over several batches or processes; by default of these labels.
    """
    counts = label_counts(labels, terms) if counts is None else counts
    logits_by_head = logits.float().split([term.width for term in terms], dim=1)  # each (n, width)
    total = logits.new_zeros((), dtype=torch.float32)
    # Rows without a label are set to zero, because selecting the others would wait for a GPU. Until then they need a
    # label that the loss takes.
    for term, head_logits, head_labels, count in zip(
        terms, logits_by_head, _by_head(labels, terms), counts, strict=True
    ):
        known = _known(term, head_labels)
        losses = _row_losses(term, head_logits, head_labels.where(known[:, None], 0.0))
        # A head without any label adds an exact zero, and its gradients are zero rather than missing.
        total = total + term.weight * losses.where(known, 0.0).sum() / count.clamp(1e-9)
    return total


def label_counts(labels: torch.Tensor, terms: Sequence[LossTerm]) -> torch.Tensor:
    """The divisor of each head's sum, ``(heads,)``: the number of its labelled rows, or their sum of class weights."""
    counts = []
    for term, head_labels in zip(terms, _by_head(labels, terms), strict=True):
        known = _known(term, head_labels)
        weights = known.float()
        if term.kind == HeadKind.SINGLE_LABEL and term.label_weights is not None:
            classes = head_labels[:, 0].where(known, 0.0)
            of_class = _on_device(term.label_weights, labels.device)[classes.long().clamp(min=0)]
            weights = weights * of_class.where(classes != OUT_OF_SCOPE, 1.0)
        counts.append(weights.sum())
    return torch.stack(counts)


def _row_losses(term: LossTerm, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``(n,)``."""
    weights = None if term.label_weights is None else _on_device(term.label_weights, logits.device)
    match term.kind:
        case HeadKind.SINGLE_LABEL:
            indices = labels[:, 0].long().clamp(min=0)
            losses = F.cross_entropy(
                logits, indices, weight=weights, label_smoothing=term.label_smoothing, reduction="none"
            )
            return torch.where(labels[:, 0] == OUT_OF_SCOPE, -F.log_softmax(logits, dim=1).mean(dim=1), losses)
        case HeadKind.MULTI_LABEL:
            targets = labels * (1 - term.label_smoothing) + term.label_smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none").mean(dim=1)
        case HeadKind.REGRESSION:
            values, targets = logits[:, 0], labels[:, 0]
            if term.target_scale is not None:
                center, spread = term.target_scale
                targets = ((targets.double() - center) / spread).float()  # float32 would lose digits of 1,700,000,000
                return 2 * F.huber_loss(values, targets, delta=OUTLIER, reduction="none")
            if term.y_range is not None:
                lowest, highest = term.y_range
                values = lowest + (highest - lowest) * values.sigmoid()
            return (values - targets) ** 2


@cache
def _on_device(weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """The weights as float32; copied once, because each copy would wait for the device."""
    with torch.inference_mode(False):  # else the kept tensor could not be used in training
        return torch.tensor(weights, dtype=torch.float32, device=device)


def _known(term: LossTerm, labels: torch.Tensor) -> torch.Tensor:
    """Which rows have a label, ``(n,)``."""
    known = ~labels.isnan().any(dim=1)
    return known & (labels[:, 0] != IGNORED) if term.kind == HeadKind.SINGLE_LABEL else known


def _by_head(labels: torch.Tensor, terms: Sequence[LossTerm]) -> Sequence[torch.Tensor]:
    """One matrix ``(n, label_width)`` per head."""
    widths = [term.label_width for term in terms]
    if labels.ndim == 1 and sum(widths) == 1:
        labels = labels[:, None]
    if labels.ndim != 2 or labels.shape[1] != sum(widths):
        raise ValueError(f"labels must have {sum(widths)} columns for these heads, got shape {tuple(labels.shape)}")
    return torch.split(labels.float(), widths, dim=1)


def _label_weights(head: Head, config: HeadConfig, labels: NDArray[np.float32] | None) -> tuple[float, ...] | None:
    field = "class_weights" if head.kind == HeadKind.SINGLE_LABEL else "positive_weights"
    given = config.class_weights if config.class_weights is not None else config.positive_weights
    if given is None:
        return None
    if given == "balanced":
        if labels is None:
            raise ValueError("balanced weights are counted from labels")
        return _balanced(head, labels[~np.isnan(labels).any(axis=1)])
    assert isinstance(given, Mapping)
    off = sorted(set(given) ^ set(head.labels))
    if off:
        raise ConfigError(f"heads: {head.name!r}: {field} needs a weight for each label and nothing else; check {off}")
    if bad := {label: weight for label, weight in given.items() if not 0 < weight < np.inf}:
        raise ConfigError(f"heads: {head.name!r}: {field} must be positive numbers, got {bad}")
    return tuple(given[label] for label in head.labels)


def _balanced(head: Head, labels: NDArray[np.float32]) -> tuple[float, ...]:
    """scikit-learn's ``balanced`` for classes; negative over positive rows for labels. No row counts as one."""
    if head.kind == HeadKind.SINGLE_LABEL:
        counts = np.bincount(labels[:, 0].astype(int), minlength=head.width).clip(min=1)
        return tuple((len(labels) / (head.width * counts)).tolist())
    positive = labels.sum(axis=0).clip(min=1)
    return tuple(((len(labels) - positive).clip(min=1) / positive).tolist())
