"""Calibration on validation rows: one temperature per head, and thresholds for the labels of multi_label heads.

A threshold lies midway between two scores, so no row that it was fitted on is exactly at the boundary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_curve

from polyhead.decode import Scores, to_scores
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.metrics import score_heads

# Heads that make no mistake on few rows would get lower temperatures, which also magnify float32's errors.
TEMPERATURES = (0.25, 20.0)
MIN_POSITIVES = 10  # labels with fewer positive rows share one threshold: with so few rows the best one is chance
SHOWN = ("ece", "nll", "micro_f1", "macro_f1", "accuracy")


def calibrate(
    logits: NDArray[np.float32], labels: NDArray[np.float32], schema: Schema, config: CalibrationConfig
) -> tuple[Schema, dict[str, Any]]:
    """Fits what `config` asks for. Rows without a label for a head do not count in it.

    Args:
        logits: ``(n, schema.width)``.
        labels: ``(n, sum of label widths)``; NaN where unknown.

    Returns:
        The schema with temperatures and thresholds; and by head what was fitted, with metrics ``before`` and ``after``
        on the same rows.
    """
    heads = []
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        known = ~np.isnan(given).any(axis=1)
        heads.append(_calibrate_head(head, logits[known, schema.columns[head.name]], given[known], config))
    calibrated = Schema(heads)
    before, after = score_heads(logits, labels, schema), score_heads(logits, labels, calibrated)
    summary = {}
    for head in calibrated:
        if head.kind == HeadKind.REGRESSION:
            continue
        fitted: dict[str, Any] = {"rows": before[head.name]["rows"], "temperature": head.temperature}
        if head.thresholds is not None:
            fitted["thresholds"] = dict(zip(head.labels, head.thresholds, strict=True))
        for name, metrics in (("before", before), ("after", after)):
            fitted[name] = {key: metrics[head.name][key] for key in SHOWN if key in metrics[head.name]}
        summary[head.name] = fitted
    return calibrated, summary


def _calibrate_head(
    head: Head, logits: NDArray[np.float32], labels: NDArray[np.float32], config: CalibrationConfig
) -> Head:
    if head.kind == HeadKind.REGRESSION or not len(labels):
        return head
    if config.temperature:
        head = head.model_copy(update={"temperature": _fit_temperature(head, logits.astype(np.float64), labels)})
    if config.thresholds != "fixed" and head.kind == HeadKind.MULTI_LABEL:
        scores, true = to_scores(logits, Schema([head])), labels.astype(bool)
        if config.thresholds == "f1":
            thresholds = _fit_thresholds(scores, true)
        else:
            # With calibrated scores, a common threshold has the best micro F1 (Lipton et al. 2014, arXiv:1402.1892).
            thresholds = (best_threshold(scores.ravel(), true.ravel()),) * head.width
        head = head.model_copy(update={"thresholds": thresholds})
    return head


def _fit_temperature(head: Head, logits: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017).

    Over the temperature's logarithm the likelihood has one minimum.
    """

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if head.kind == HeadKind.SINGLE_LABEL:
            return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels[:, 0].astype(int)].mean())
        return float(np.logaddexp(0, np.where(labels == 1, -scaled, scaled)).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(np.log(head.temperature)) else head.temperature


def _fit_thresholds(scores: Scores, true: NDArray[np.bool_]) -> tuple[float, ...]:
    positives = true.sum(axis=0)
    rare = (positives > 0) & (positives < MIN_POSITIVES)
    shared = best_threshold(scores[:, rare].ravel(), true[:, rare].ravel())
    return tuple(
        shared if is_rare else best_threshold(scores[:, i], true[:, i]) for i, is_rare in enumerate(rare.tolist())
    )


def best_threshold(scores: Scores, true: NDArray[np.bool_]) -> float:
    """The threshold with the best F1; if several have it, the one farthest from any score. 0.5 if nothing is true."""
    if not true.any():
        return 0.5
    precision, recall, thresholds = precision_recall_curve(true, scores.astype(np.float64))
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    below = np.concatenate(([0.0], thresholds[:-1]))  # the next lower score
    best = np.where(f1 >= f1.max() - 1e-12, thresholds - below, -1).argmax()
    return float((below[best] + thresholds[best]) / 2)
