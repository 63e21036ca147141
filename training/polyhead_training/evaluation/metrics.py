"""Scores a head, through scikit-learn, of the answers that serving would give. What has no meaning is left out.

Single-label answers are scored as 0/1 rows, as multi-label ones are: scikit-learn then takes any number of labels and
rows without a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from polyhead.decode import Scores, best_paths, over_threshold, to_scores
from polyhead.schema import Head, Schema

HEADLINE = {"single_label": "accuracy", "multi_label": "micro_f1", "regression": "mae"}
MAIN = {  # what a table on one screen shows
    "single_label": ("accuracy", "macro_f1", "ece"),
    "multi_label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("mae", "rmse", "r2"),
}
BINS = 15  # of the expected calibration error, as in Guo et al. 2017, arXiv:1706.04599
TOP_K = (3, 5)

Labels = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """One head's part of scores, answers and true labels, in the rows whose label is known.

    Attributes:
        known: which rows of all these are.
        scores: ``(rows, head.width)``.
        chosen: 0/1 ``(rows, head.width)``, of the served answer; empty columns for a regression.
        true: of the same shape; for a regression its numbers ``(rows, 1)``.
    """

    head: Head
    known: Mask
    scores: Scores
    chosen: NDArray[np.int8]
    true: NDArray[Any]


def score_heads(logits: NDArray[np.floating[Any]], labels: Labels, schema: Schema) -> dict[str, dict[str, float]]:
    """`score_answers` of logits ``(n, schema.width)``."""
    return score_answers(to_scores(logits, schema), labels, schema)


def flat_scores(logits: NDArray[np.floating[Any]], labels: Labels, schema: Schema) -> dict[str, float]:
    """As `score_heads`, each score by ``head/metric``."""
    by_head = score_heads(logits, labels, schema)
    return {f"{head}/{name}": value for head, scores in by_head.items() for name, value in scores.items()}


def score_answers(scores: Scores, labels: Labels, schema: Schema) -> dict[str, dict[str, float]]:
    """Metrics by head name; rows without a label for a head do not count in it.

    The head on top of a taxonomy also has the taxonomy's metrics.

    Args:
        scores: calibrated ``(n, schema.width)``.
        labels: ``(n, sum of label widths)``, as in `polyhead_training.data.corpus.Split`.
    """
    answers = {part.head.name: part for part in answers_of(scores, labels, schema)}
    results = {}
    for head in schema:
        result = _score_head(answers[head.name])
        if head.parent is None and schema.children(head.name):
            result |= _score_taxonomy([answers[level.name] for level in levels_below(head, schema)], schema)
        results[head.name] = result
    return results


def answers_of(scores: Scores, labels: Labels, schema: Schema) -> Iterator[Answers]:
    """What would be served for these scores, a head at a time, beside the true labels."""
    paths: list[dict[str, int]] = []
    if any(head.parent for head in schema):
        paths = [best_paths(row, schema) for row in scores]
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        known = ~np.isnan(given).any(axis=1)
        head_scores = scores[:, schema.columns[head.name]]
        match head.kind:
            case "single_label":
                best = head_scores.argmax(axis=1)
                if paths and head.name in paths[0]:
                    best = np.array([path[head.name] for path in paths])
                chosen = _one_hot(best, head.width)[known]
                true = _one_hot(given[known, 0].astype(np.intp), head.width)
            case "multi_label":
                chosen = over_threshold(head_scores[known], head.thresholds or ()).astype(np.int8)
                true = given[known].astype(np.int8)
            case "regression":
                chosen, true = np.empty((known.sum(), 0), np.int8), given[known]
        yield Answers(head, known, head_scores[known], chosen, true)


def levels_below(head: Head, schema: Schema) -> list[Head]:
    """The head and all heads below it, parents first."""
    return [head, *(level for child in schema.children(head.name) for level in levels_below(child, schema))]


def reliability(confidence: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Mean confidence, share that is right and number of decisions ``(bins, 3)``, of the bins that hold any."""
    confidence = np.asarray(confidence, dtype=np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right)]
    filled = counts > 0
    return np.stack([*(total[filled] / counts[filled] for total in sums), counts[filled]], axis=1)


def decisions(answers: Answers) -> tuple[NDArray[Any], NDArray[Any]]:
    """Confidence and truth of each decision: of a single_label head its answer, of a multi_label head all its labels.

    A row's answer of a taxonomy is a label of the best path, which need not have the head's highest score.
    """
    if answers.head.kind == "multi_label":
        return answers.scores.ravel(), answers.true.ravel()
    best = answers.chosen.argmax(axis=1)[:, None]
    return np.take_along_axis(answers.scores, best, 1)[:, 0], np.take_along_axis(answers.true, best, 1)[:, 0]


def _one_hot(indices: NDArray[np.intp], width: int) -> NDArray[np.int8]:
    return (indices[:, None] == np.arange(width)).astype(np.int8)


def _score_head(answers: Answers) -> dict[str, float]:
    rows = len(answers.true)
    result: dict[str, float] = {"rows": rows}
    if rows:
        match answers.head.kind:
            case "single_label":
                result |= _score_single(answers)
            case "multi_label":
                result |= _score_multi(answers)
            case "regression":
                result |= _score_regression(answers)
    return {name: value if name == "rows" else float(value) for name, value in result.items()}


def _score_single(answers: Answers) -> dict[str, float]:
    true, chosen, scores = answers.true, answers.chosen, answers.scores
    seen = true.any(axis=0)
    right = (true & chosen).any(axis=1)
    # The answer first, then the other labels by score, as a client that asks for top_k gets them.
    order = np.argsort(-np.where(chosen, np.inf, scores), axis=1, kind="stable")
    ranks = np.take_along_axis(true, order, axis=1).argmax(axis=1)
    both = _both_classes(true)
    # As scikit-learn takes them from a list of labels; of multi_label heads it takes all labels.
    named = seen | chosen.any(axis=0)
    return {
        "accuracy": right.mean(),
        # The mean recall over labels that occur.
        "balanced_accuracy": metrics.recall_score(true[:, seen], chosen[:, seen], average="macro", zero_division=0),
        **_f1(true[:, named], chosen[:, named]),
        **{f"top_{k}_accuracy": (ranks < k).mean() for k in TOP_K if k < answers.head.width},
        **_rankings(true[:, both], scores[:, both], "macro"),
        "nll": metrics.log_loss(true.argmax(axis=1), _normal(scores), labels=range(answers.head.width)),
        "ece": expected_calibration_error(*decisions(answers)),
    }


def _score_multi(answers: Answers) -> dict[str, float]:
    true, chosen, scores = answers.true, answers.chosen, answers.scores
    both = _both_classes(true)
    rankings = {
        f"{average}_{name}": value
        for average in ("micro", "macro")
        for name, value in _rankings(true[:, both], scores[:, both], average).items()
    }
    return {
        **_f1(true, chosen),
        "subset_accuracy": (true == chosen).all(axis=1).mean(),
        "hamming_loss": (true != chosen).mean(),
        **rankings,
        "nll": metrics.log_loss(true.ravel(), scores.ravel().astype(np.float64), labels=(0, 1)),
        "ece": expected_calibration_error(*decisions(answers)),
    }


def _score_regression(answers: Answers) -> dict[str, float]:
    true, values = answers.true[:, 0].astype(np.float64), answers.scores[:, 0].astype(np.float64)
    result = {
        "mae": metrics.mean_absolute_error(true, values),
        "rmse": metrics.root_mean_squared_error(true, values),
    }
    if len(np.unique(true)) > 1:  # R2 compares with the spread of the true values
        result["r2"] = metrics.r2_score(true, values)
    return result


def _score_taxonomy(levels: list[Answers], schema: Schema) -> dict[str, float]:
    """Hierarchical precision, recall and F1 (Kiritchenko et al. 2005): of labels and all labels above them.

    Only rows count whose label is known on every level.
    """
    known = np.logical_and.reduce([level.known for level in levels])
    if not known.any():
        return {}
    rows = [known[level.known] for level in levels]
    above = _with_ancestors([level.head for level in levels], schema)
    true = np.hstack([level.true[row] for level, row in zip(levels, rows, strict=True)])
    chosen = np.hstack([level.chosen[row] for level, row in zip(levels, rows, strict=True)])
    true_set, chosen_set = true @ above > 0, chosen @ above > 0
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        true_set, chosen_set, average="micro", zero_division=0
    )
    return {
        "taxonomy_rows": int(known.sum()),
        "hierarchical_precision": float(precision),
        "hierarchical_recall": float(recall),
        "hierarchical_f1": float(f1),
        "path_accuracy": float((true == chosen).all(axis=1).mean()),
        # One label a level: labels that contradict each other bring ancestors of their own.
        "consistency": float((chosen_set.sum(axis=1) == len(levels)).mean()),
    }


def _with_ancestors(levels: list[Head], schema: Schema) -> NDArray[np.int64]:
    """0/1 ``(labels, labels)`` over all levels: each label's row marks itself and all labels above it."""
    names = [(head.name, label) for head in levels for label in head.labels]
    place = {name: index for index, name in enumerate(names)}
    above = np.eye(len(names), dtype=np.int64)
    for name, label in names:  # parents first, so that theirs are complete
        head = schema[name]
        if head.parent is not None and head.parent_of is not None:
            above[place[name, label]] |= above[place[head.parent, head.parent_of[label]]]
    return above


def _f1(true: NDArray[np.int8], chosen: NDArray[np.int8]) -> dict[str, float]:
    return {
        f"{average}_f1": metrics.f1_score(true, chosen, average=average, zero_division=0)
        for average in ("macro", "micro", "weighted")
    }


def _rankings(true: NDArray[np.int8], scores: Scores, average: str) -> dict[str, float]:
    """Of labels ``(rows, labels)`` that all have both classes."""
    if not true.shape[1]:
        return {}
    return {
        "auroc": metrics.roc_auc_score(true, scores, average=average),
        "average_precision": metrics.average_precision_score(true, scores, average=average),
    }


def _both_classes(true: NDArray[np.int8]) -> Mask:
    both: Mask = true.any(axis=0) & ~true.all(axis=0)
    return both


def _normal(scores: Scores) -> NDArray[np.float64]:
    exact = scores.astype(np.float64)
    normal: NDArray[np.float64] = exact / exact.sum(axis=1, keepdims=True)
    return normal


def expected_calibration_error(confidence: NDArray[Any], right: NDArray[Any]) -> float:
    """Distance of confidence from the share that is right, over bins of equal width, weighted by their decisions."""
    mean_confidence, share_right, counts = reliability(confidence, right).T
    return float((np.abs(mean_confidence - share_right) * counts).sum() / counts.sum())
