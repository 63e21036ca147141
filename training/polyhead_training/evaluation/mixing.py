"""Mixing: how much the n-grams count beside the network, one weight per head, chosen on validation rows.

A head's logits become ``network + weight * n-grams``. A temperature is fitted with the weight, because a mix is surer
than its parts; it is not kept, because calibration fits it again. The weight is kept only if it helps in rows that it
was not chosen on. So n-grams never make a head worse that a network, pretrained perhaps, answers better alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from polyhead.ngrams import NGrams
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.evaluation.linear_model import LinearModel

FOLDS = 5
FEWEST_ROWS = 10  # with a label
MOST_LOGITS, FEWEST_FITTED = 1_000_000, 1000  # a weight is fitted on about so many logits, if these are so many rows
# The weights and temperatures that are looked for, as logarithms; and the weight that is expected before any row is
# seen, with the standard deviation of its logarithm.
BOUNDS = ((np.log(0.01), np.log(300.0)), (np.log(0.05), np.log(20.0)))
EXPECTED, DEVIATION = 0.0, 2.0
LEAST_SHARE = 0.02  # of the network in a regression

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Mix:
    """What is added to a network.

    Attributes:
        weights: of the n-grams, by head; 0 if they do not help.
        schema: with the scale that the mix gives to regressions.
        ngrams: weighted; None if they help no head.
        summary: by head: ``weight`` and the cross-fitted loss ``before`` and ``after``.
    """

    weights: Mapping[str, float]
    schema: Schema
    ngrams: NGrams | None
    summary: dict[str, dict[str, float]]

    def logits(self, network: Logits, linear: Logits) -> Logits:
        """The mixed logits ``(n, schema.width)``."""
        mixed = network.copy()
        for name, weight in self.weights.items():
            columns = self.schema.columns[name]
            if weight:
                mixed[:, columns] += np.float32(weight) * linear[:, columns]
        return mixed


def mix(network: Logits, linear: Logits, labels: NDArray[np.float32], schema: Schema, model: LinearModel) -> Mix:
    """Chooses the weight of each head.

    Args:
        network, linear: logits ``(n, schema.width)`` of the same rows.
        labels: of these rows; NaN where unknown.
        model: whose logits `linear` are.
    """
    heads, weights, summary = [], {}, {}
    fold = np.random.default_rng(0).permutation(len(network)) % FOLDS  # rows may be sorted by label
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        known = ~np.isnan(given).any(axis=1)
        weights[head.name], mixed = 0.0, head
        if head.name in model.is_whole and known.sum() >= FEWEST_ROWS:
            columns = schema.columns[head.name]
            parts = network[known][:, columns], linear[known][:, columns], given[known]
            fit = _fit_regression if head.kind == HeadKind.REGRESSION else _fit_labels
            before, after = _cross_fitted(head, fit, *parts, fold[known])
            if after < before:
                fitted, weights[head.name] = fit(head, *parts)
                mixed = fitted.model_copy(update={"temperature": head.temperature})
                summary[head.name] = {"weight": weights[head.name], "before": before, "after": after}
        heads.append(mixed)
    mixed_schema = Schema(heads)
    ngrams = None
    if model.ngrams is not None and any(weights.values()):
        scale = torch.zeros(schema.width)
        for name, weight in weights.items():
            scale[schema.columns[name]] = weight
        ngrams = replace(model.ngrams, weights=model.ngrams.weights * scale, bias=model.ngrams.bias * scale)
    return Mix(weights, mixed_schema, ngrams, summary)


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
    head: Head, fit: Any, network: Logits, linear: Logits, given: NDArray[np.float32], fold: NDArray[np.intp]
) -> tuple[float, float]:
    """The mean loss of the network alone and of the mix, each fitted on the other folds."""
    before = after = 0.0
    for number in range(FOLDS):
        out = fold == number
        if not out.any() or out.all():
            continue
        rest = network[~out], linear[~out], given[~out]
        alone, _ = fit(head, rest[0], np.zeros_like(rest[1]), rest[2])
        mixed, weight = fit(head, *rest)
        before += _loss(alone, network[out], given[out])
        after += _loss(mixed, network[out] + np.float32(weight) * linear[out], given[out])
    return before / len(given), after / len(given)


def _fit_labels(head: Head, network: Logits, linear: Logits, given: NDArray[np.float32]) -> tuple[Head, float]:
    """The head with the best temperature, and the weight, by negative log-likelihood."""
    step = max(1, min(network.size // MOST_LOGITS, len(network) // FEWEST_FITTED))
    network, linear, given = network[::step].astype(np.float64), linear[::step].astype(np.float64), given[::step]
    has_linear = bool(linear.any())

    def loss(logs: NDArray[np.float64]) -> float:
        weight, temperature = np.exp(logs)
        logits = (network + weight * linear) / temperature if has_linear else network / temperature
        return _nll(head, logits, given) * step + ((logs[0] - EXPECTED) / DEVIATION) ** 2 / 2

    starts = ([0.0, 0.0], [np.log(10.0), 0.0], [np.log(0.1), 0.0]) if has_linear else ([0.0, 0.0],)
    found = min(
        (minimize(loss, start, method="L-BFGS-B", bounds=BOUNDS) for start in starts), key=lambda result: result.fun
    )
    weight, temperature = np.exp(found.x)
    return head.model_copy(update={"temperature": float(temperature)}), float(weight) if has_linear else 0.0


def _fit_regression(head: Head, network: Logits, linear: Logits, given: NDArray[np.float32]) -> tuple[Head, float]:
    """The head with the scale of the mix, and the weight, by least squares."""
    if head.target_scale is None:
        return head, 0.0
    center, spread = head.target_scale
    if not linear.any():
        return head, 0.0
    values = np.concatenate([np.ones_like(network), network, linear], axis=1).astype(np.float64)
    targets = (given[:, 0].astype(np.float64) - center) / spread
    (offset, share, linear_share), *_ = np.linalg.lstsq(values, targets, rcond=None)
    share = max(share, LEAST_SHARE)
    if linear_share <= 0:
        return head, 0.0
    scaled = head.model_copy(update={"target_scale": (float(center + spread * offset), float(spread * share))})
    return scaled, float(linear_share / share)


def _loss(head: Head, logits: Logits, given: NDArray[np.float32]) -> float:
    """The summed loss of a fitted head."""
    if head.kind == HeadKind.REGRESSION:
        center, spread = head.target_scale or (0.0, 1.0)
        values = center + spread * logits[:, 0].astype(np.float64)
        return float(((values - given[:, 0]) ** 2).sum())
    return _nll(head, logits.astype(np.float64) / head.temperature, given)


def _nll(head: Head, logits: NDArray[np.float64], given: NDArray[np.float32]) -> float:
    if head.kind == HeadKind.SINGLE_LABEL:
        return float(-log_softmax(logits, axis=1)[np.arange(len(given)), given[:, 0].astype(np.intp)].sum())
    signed = np.where(given == 1, -logits, logits)
    return float((np.maximum(signed, 0) + np.log1p(np.exp(-np.abs(signed)))).sum())
