"""Thresholds for the labels of a multi_label head: from which score on a label is answered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from polyhead.decode import Scores, over_threshold
from polyhead_training.evaluation.metrics import Mask

PULL = 20  # a label with so many positive rows has a threshold halfway between its own and the one of all labels
MOST_ANSWERS = 3  # no threshold answers a label in more rows than this times its own rows


def fit_thresholds(scores: Scores, true: Mask, per_label: bool) -> tuple[float, ...]:
    """Thresholds ``(labels,)`` with good F1.

    The fewer positive rows a label has, the nearer its threshold is to the one of all labels. A label that would never
    be answered, because its scores are low, gets its own if that raises the F1 of all answers together. A label that
    would be answered in more than `MOST_ANSWERS` times its rows gets a higher one. Otherwise a label that the scores
    say nothing about would be answered always, because that has its best F1 (Lipton et al. 2014, arXiv:1402.1892).
    """
    shared = best_threshold(scores.ravel(), true.ravel())
    worthwhile = _f1(over_threshold(scores, shared), true) / 2
    positives = true.sum(axis=0)
    thresholds = []
    for label, count in enumerate(positives.tolist()):
        column, threshold = scores[:, label], shared
        own = shared
        if count and (per_label or not over_threshold(column, shared).any()):
            own = best_threshold(column, true[:, label])
        if per_label and count:
            trust = count / (count + PULL)
            threshold = float(expit(trust * _logit(own) + (1 - trust) * _logit(shared)))
        if not over_threshold(column, threshold).any():
            answered = over_threshold(column, own)
            # More answers raise an F1 if more than half of it are right (Lipton et al. 2014).
            if answered.any() and true[answered, label].mean() > worthwhile:
                threshold = own
        most = MOST_ANSWERS * max(count, 1)
        is_often = over_threshold(column, threshold).sum() > most
        thresholds.append(_least_threshold(column, most) if is_often else threshold)
    return tuple(thresholds)


def _f1(answered: Mask, true: Mask) -> float:
    return 2 * float((answered & true).sum()) / max(int(answered.sum() + true.sum()), 1)


def _logit(share: float) -> float:
    return float(logit(np.clip(share, 1e-9, 1 - 1e-9)))


def best_threshold(scores: Scores, true: Mask) -> float:
    """The threshold with the best F1 among those that answer at most `MOST_ANSWERS` times the positive rows.

    It lies midway between two scores, so no row that it was fitted on is exactly at the boundary. If several have the
    best F1, it is the one farthest from any score. 0.5 if nothing is true.
    """
    positives = int(true.sum())
    if not positives:
        return 0.5
    best, order = _ranked(scores, MOST_ANSWERS * positives)
    answered = np.arange(1, len(best))
    f1 = 2 * np.cumsum(true[order])[: len(answered)] / (answered + positives)
    gaps = best[:-1] - best[1:]
    allowed = gaps > 0  # equal scores are answered together
    if not allowed.any():
        return (1.0 + float(best[0])) / 2
    top = f1[allowed].max()
    place = int(np.where(allowed & (f1 >= top - 1e-12), gaps, -1).argmax())
    return float((best[place] + best[place + 1]) / 2)


def _least_threshold(scores: Scores, most: int) -> float:
    """The lowest threshold, midway between two scores, that at most `most` rows reach."""
    best, _ = _ranked(scores, most)
    places = np.flatnonzero(best[:-1] > best[1:])
    if not len(places):
        return (1.0 + float(best[0])) / 2
    return float((best[places[-1]] + best[places[-1] + 1]) / 2)


def _ranked(scores: Scores, most: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The `most` highest scores and the next one, best first (0 after the last of all), and the rows that have them."""
    count = min(most + 1, len(scores))
    order = np.arange(len(scores)) if count == len(scores) else np.argpartition(-scores, count - 1)[:count]
    order = order[np.argsort(-scores[order], kind="stable")]
    best = scores[order].astype(np.float64)
    return (np.append(best, 0.0), order) if count < most + 1 else (best, order)
