"""Mixing: how much the n-grams count beside the network, one weight per head, chosen on validation rows.

A head's logits become ``network + weight * n-grams``. A temperature is fitted with the weight, because a mix is surer
than its parts; it is not kept, because calibration fits it again. The weight is kept only if it helps, by more than
chance, in rows that it was not chosen on. So n-grams do not make a head worse that a network, pretrained perhaps,
answers better alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from polyhead.ngrams import NGrams
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.evaluation.likelihood import FOLDS, folds_of, log_loss_of, some_rows
from polyhead_training.evaluation.linear_model import LinearModel
from polyhead_training.evaluation.metrics import Labels

FEWEST_KNOWN = 10  # rows with a label
# The weights and temperatures that are looked for, as logarithms; and the weight that is expected before any row is
# seen, with the standard deviation of its logarithm.
BOUNDS = ((np.log(0.01), np.log(300.0)), (np.log(0.05), np.log(20.0)))
EXPECTED, DEVIATION = 0.0, 2.0
LEAST_SHARE = 0.02  # of the network in a regression

Logits = NDArray[np.float32]
Fit = Callable[[Head, Logits, Logits | None, Labels], tuple[Head, float]]
"""Head, logits of the network and of the n-grams (None: the network alone), labels: the fitted head, and the weight."""


@dataclass(frozen=True)
class Mix:
    """What is added to a network.

    Attributes:
        schema: with the scale that the mix gives to regressions.
        ngrams: weighted; None if they help no head.
        summary: by head that they help: ``weight``, and the cross-fitted loss ``before`` and ``after``.
    """

    schema: Schema
    ngrams: NGrams | None
    summary: Mapping[str, Mapping[str, float]]

    def logits(self, network: Logits, linear: Logits) -> Logits:
        """The mixed logits ``(n, schema.width)``."""
        return network + linear * _per_column(self.schema, self.summary)


def mix(network: Logits, linear: Logits, labels: Labels, schema: Schema, model: LinearModel) -> Mix:
    """Chooses the weight of each head.

    Args:
        network, linear: logits ``(n, schema.width)`` of the same rows.
        labels: of these rows; NaN where unknown.
        model: whose logits `linear` are.
    """
    heads, summary = [], {}
    fold = folds_of(len(network))
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        known = ~np.isnan(given).any(axis=1)
        if head.name in model.is_whole and known.sum() >= FEWEST_KNOWN:
            columns = schema.columns[head.name]
            parts = network[known][:, columns], linear[known][:, columns], given[known]
            fit = _fit_regression if head.kind == HeadKind.REGRESSION else _fit_labels
            before, after = _cross_fitted(head, fit, *parts, fold[known])
            if _helps(before - after):
                fitted, weight = fit(head, *parts)
                head = fitted.model_copy(update={"temperature": head.temperature})
                losses = {"before": float(before.mean()), "after": float(after.mean())}
                summary[head.name] = {"weight": weight, **losses}
        heads.append(head)
    ngrams = None
    if model.ngrams is not None and any(found["weight"] for found in summary.values()):
        scale = torch.from_numpy(_per_column(schema, summary))
        ngrams = replace(model.ngrams, weights=model.ngrams.weights * scale, bias=model.ngrams.bias * scale)
    return Mix(Schema(heads), ngrams, summary)


def _per_column(schema: Schema, summary: Mapping[str, Mapping[str, float]]) -> Logits:
    """The weight of each column of the logits; 0 if the n-grams do not help."""
    weights = np.zeros(schema.width, np.float32)
    for name, found in summary.items():
        weights[schema.columns[name]] = found["weight"]
    return weights


def describe_mix(mixed: Mix) -> list[str]:
    """A line per head."""
    lines = []
    for head in mixed.schema:
        found = mixed.summary.get(head.name)
        if found is None:
            lines.append(f"{head.name}: the network alone, because n-grams do not help")
            continue
        what = "squared error" if head.kind == HeadKind.REGRESSION else "nll"
        lines.append(
            f"{head.name}: n-grams count {found['weight']:.2g} times, cross-fitted {what} "
            f"{found['before']:.3f} → {found['after']:.3f}"
        )
    return lines


def _cross_fitted(
    head: Head, fit: Fit, network: Logits, linear: Logits, labels: Labels, fold: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The loss of the network alone and of the mix on each fold, fitted on the other folds."""
    before, after = [], []
    for number in range(FOLDS):
        out = fold == number
        if not out.any() or out.all():
            continue
        alone, _ = fit(head, network[~out], None, labels[~out])
        mixed, weight = fit(head, network[~out], linear[~out], labels[~out])
        before.append(_loss(alone, network[out], labels[out]))
        after.append(_loss(mixed, network[out] + np.float32(weight) * linear[out], labels[out]))
    return np.array(before), np.array(after)


def _helps(gains: NDArray[np.float64]) -> bool:
    """Whether the mean of the folds' gains is above its standard error, so that it is probably not chance."""
    return len(gains) > 1 and float(gains.mean()) > float(gains.std(ddof=1)) / np.sqrt(len(gains))


def _fit_labels(head: Head, network: Logits, linear: Logits | None, labels: Labels) -> tuple[Head, float]:
    """The best temperature and weight, by negative log-likelihood."""
    part = some_rows(network)
    log_loss = log_loss_of(head, labels[part])
    given = network[part].astype(np.float64)
    added = None if linear is None else linear[part].astype(np.float64)

    def loss(logs: NDArray[np.float64]) -> float:
        weight, temperature = np.exp(logs)
        logits = given if added is None else given + weight * added
        prior = float(((logs[0] - EXPECTED) / DEVIATION) ** 2 / 2)
        return log_loss(logits / temperature) * labels.size + prior

    starts = [[0.0, 0.0]] if added is None else [[0.0, 0.0], [np.log(10.0), 0.0], [np.log(0.1), 0.0]]
    found = min(
        (minimize(loss, start, method="L-BFGS-B", bounds=BOUNDS) for start in starts), key=lambda result: result.fun
    )
    weight, temperature = np.exp(found.x)
    return head.model_copy(update={"temperature": float(temperature)}), 0.0 if added is None else float(weight)


def _fit_regression(head: Head, network: Logits, linear: Logits | None, labels: Labels) -> tuple[Head, float]:
    """The scale of the mix, and the weight, by least squares."""
    if head.target_scale is None or linear is None:
        return head, 0.0
    center, spread = head.target_scale
    values = np.concatenate([np.ones_like(network), network, linear], axis=1).astype(np.float64)
    targets = (labels[:, 0].astype(np.float64) - center) / spread
    (offset, share, linear_share), *_ = np.linalg.lstsq(values, targets, rcond=None)
    share = max(share, LEAST_SHARE)
    if linear_share <= 0:
        return head, 0.0
    scaled = head.model_copy(update={"target_scale": (float(center + spread * offset), float(spread * share))})
    return scaled, float(linear_share / share)


def _loss(head: Head, logits: Logits, labels: Labels) -> float:
    """The mean loss of a fitted head: the squared error of numbers, else the negative log-likelihood."""
    if head.kind == HeadKind.REGRESSION:
        center, spread = head.target_scale or (0.0, 1.0)
        values = center + spread * logits[:, 0].astype(np.float64)
        return float(((values - labels[:, 0]) ** 2).mean())
    return log_loss_of(head, labels)(logits.astype(np.float64) / head.temperature)
