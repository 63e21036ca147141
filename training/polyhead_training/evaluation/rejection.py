"""Rejection of single_label answers: which score is too low to answer, and what that costs (selective classification).

A bound is fitted for a share of rows to answer, or for a share of right answers among them, on validation rows. In a
taxonomy a rejected level rejects the levels below it (`polyhead.decode.rejected`), so heads are fitted parents first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from polyhead.decode import Scores, best_labels, certainty, confidence_of, rejected
from polyhead.schema import Schema
from polyhead_training.evaluation.metrics import (
    HeadAnswers,
    Labels,
    Mask,
    decisions,
)
from polyhead_training.evaluation.wording import number

Rejections = Mapping[str, float | Mapping[Literal["coverage", "precision"], float]]
"""By head: its bound as it is, or the coverage or precision that it is fitted for."""


def fit_rejections(
    scores: Scores, labels: Labels, schema: Schema, wanted: Rejections, note: Callable[[str, str], None]
) -> Schema:
    """The schema with a ``reject_below`` for the wanted heads.

    Rows without a label for a head do not count in it. Rows that a level above rejects count as rejected.

    Args:
        scores: calibrated ``(n, schema.width)``.
        labels: ``(n, sum of label widths)``; NaN where unknown.
        note: gets the head and a sentence if no bound can be fitted.
    """
    labels_of = best_labels(scores, schema)
    best = confidence_of(labels_of, scores, schema)
    found = {head.name: head for head in schema}
    for head in schema.single_label_heads:  # parents first: what they reject is known
        target = wanted.get(head.name)
        if target is None:
            continue
        given = labels[:, schema.label_columns[head.name]][:, 0]
        known = ~np.isnan(given)
        above = rejected(best, Schema([found[each.name] for each in schema])).get(head.name)
        is_open = known if above is None else known & ~above
        confidence, right = best[head.name][is_open], (labels_of[head.name] == given)[is_open]
        if isinstance(target, Mapping):
            bound = _fit(target, confidence, right, int(known.sum()), partial(note, head.name))
        else:
            bound = float(target)
        found[head.name] = head.model_copy(update={"reject_below": bound})
    return Schema([found[head.name] for head in schema])


def _fit(
    target: Mapping[Any, float], confidence: Scores, right: Mask, rows: int, note: Callable[[str], None]
) -> float | None:
    if not rows:
        note("no reject_below is stored, because no validation row has a label")
        return None
    if "coverage" in target:
        return bound_of_coverage(confidence, math.ceil(target["coverage"] * rows - 1e-9))
    bound = bound_of_precision(confidence, right, target["precision"])
    if bound is None:
        best, answered = _best_precision(confidence, right)
        note(
            f"no reject_below is stored: precision {number(target['precision'])} cannot be reached on {rows} "
            f"validation rows; of the surest {answered} of them {number(best)} are right"
        )
    return bound


def bound_of_coverage(confidence: Scores, answered: int) -> float:
    """The highest bound with which at least so many rows are answered, midway between two scores; 0 if all are."""
    ordered = np.sort(confidence)[::-1].astype(np.float64)
    if answered >= len(ordered):
        return 0.0
    if answered < 1:
        return _between(1.0, float(ordered[0]))
    lower = ordered[ordered < ordered[answered - 1]]  # equal scores are answered together
    return _between(float(ordered[answered - 1]), float(lower[0])) if len(lower) else 0.0


def bound_of_precision(confidence: Scores, right: Mask, precision: float) -> float | None:
    """The lowest bound above which this share of the answers is right; None if there is none, 0 if all may be answered.

    One more answer counts, a wrong one. Then the precision holds on average on rows that the bound was not fitted on
    (conformal risk control: Angelopoulos et al. 2022, arXiv:2208.02814), and a few lucky rows promise nothing.
    """
    ordered, answered, wrong = _ranked(confidence, right)
    places = np.flatnonzero(wrong + 1 <= (1 - precision) * (answered + 1) + 1e-9)
    if not len(places):
        return None
    last = int(places[-1])
    return 0.0 if last == len(ordered) - 1 else _between(float(ordered[last]), float(ordered[last + 1]))


def _ranked(confidence: Scores, right: Mask) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]:
    """The different scores, highest first; how many rows have at least each, and how many of these are wrong."""
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order].astype(np.float64)
    ends = np.flatnonzero(np.append(ordered[:-1] > ordered[1:], True)) if len(ordered) else np.empty(0, np.intp)
    wrong = np.cumsum(~right[order])
    return ordered[ends], ends + 1, wrong[ends]


def _best_precision(confidence: Scores, right: Mask) -> tuple[float, int]:
    """The highest precision with one more wrong answer, and how many rows have it."""
    _, answered, wrong = _ranked(confidence, right)
    if not len(answered):
        return 0.0, 0
    best = int(np.argmin((wrong + 1) / (answered + 1)))
    return float(1 - wrong[best] / answered[best]), int(answered[best])


def _between(upper: float, lower: float) -> float:
    return (upper + lower) / 2


def risk_coverage(answers: HeadAnswers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each bound, from the highest: the share of rows that are answered, and the share of these that is right."""
    confidence, right = decisions(answers)
    if answers.head.reject_by == "certainty":
        confidence = certainty(answers.scores)
    _, answered, wrong = _ranked(confidence, right.astype(bool))
    return answered / max(len(right), 1), 1 - wrong / answered


def out_of_scope_scores(
    scores: Scores, labels: Labels, schema: Schema, out_of_scope: Mapping[str, Mask]
) -> dict[str, dict[str, float]]:
    """By head with rows that belong to none of its labels: how well its score tells them from the labelled rows.

    Args:
        out_of_scope: by head, which rows these are.
    """
    best = confidence_of(best_labels(scores, schema), scores, schema)
    rejects = rejected(best, schema)
    results = {}
    for name, outside in out_of_scope.items():
        inside: Mask = ~np.isnan(labels[:, schema.label_columns[name]].sum(axis=1))
        if not outside.any():
            continue
        results[name] = {"out_of_scope_rows": float(outside.sum())}
        if inside.any():
            either = inside | outside
            results[name]["out_of_scope_auroc"] = float(roc_auc_score(inside[either], best[name][either]))
        if name in rejects:
            results[name]["out_of_scope_rejected"] = float(rejects[name][outside].mean())
    return results
