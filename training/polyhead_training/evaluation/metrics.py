"""Metrics per head of the answers that serving would give, from scikit-learn. Meaningless metrics are left out.

Single-label answers are scored as 0/1 rows, like multi-label ones: scikit-learn then takes any number of labels and
rows without a warning.

A label that training never saw cannot be answered. Its row is wrong; in F1, recall and subset accuracy it is one more
label that is never found. Likelihood and rankings need a score of the true label, so they are of the known labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn import metrics

from polyhead.decode import Scores, best_labels, confidence_of, over_threshold, rejected, to_scores
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.evaluation.rankings import rankings_of_labels

HEADLINE = {HeadKind.SINGLE_LABEL: "accuracy", HeadKind.MULTI_LABEL: "micro_f1", HeadKind.REGRESSION: "mae"}
MAIN = {  # what a table on one screen shows
    HeadKind.SINGLE_LABEL: (
        "accuracy", "macro_f1", "ece", "coverage", "answered_accuracy", "out_of_scope_auroc", "out_of_scope_rejected",
    ),
    HeadKind.MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy"),
    HeadKind.REGRESSION: ("mae", "rmse", "r2"),
}  # fmt: skip
LOWER_IS_BETTER = {"mae", "rmse", "nll", "ece", "hamming_loss"}
BINS = 15  # of the expected calibration error, as in Guo et al. 2017, arXiv:1706.04599
TOP_K = (3, 5)

Labels = NDArray[np.float32]
Mask = NDArray[np.bool_]
Unseen = Mapping[str, Mapping[int, Sequence[str]]]
"""By head and row: the labels of the row that training never saw."""


@dataclass(frozen=True)
class HeadAnswers:
    """One head's scores, answers and true labels, in the rows whose label is known.

    Attributes:
        known: which of all rows these are.
        scores: ``(rows, head.width)``.
        chosen: the served answer, 0/1 ``(rows, head.width)``; ``(rows, 0)`` for a regression.
        true: 0/1 ``(rows, head.width)``; for a regression its numbers ``(rows, 1)``.
        rejected: which rows serving answers without a label; None if the head cannot reject. `chosen` has their label.
        unseen: by row, true labels that training never saw. Such a row of a single_label head is 0 in all of `true`.
    """

    head: Head
    known: Mask
    scores: Scores
    chosen: NDArray[np.int8]
    true: NDArray[Any]
    unseen: Mapping[int, Sequence[str]] = field(default_factory=dict)
    rejected: Mask | None = None

    @property
    def unseen_labels(self) -> list[str]:
        """The labels that training never saw, sorted."""
        return sorted({label for labels in self.unseen.values() for label in labels})

    def true_labels(self, row: int) -> list[str]:
        """The true labels of a row, also those that training never saw."""
        return [*(self.head.labels[i] for i in np.flatnonzero(self.true[row])), *self.unseen.get(row, ())]

    def all_labels(self) -> tuple[Any, Any]:
        """`true` and `chosen` with a column more per unseen label, which is never chosen; sparse if there is one."""
        labels = self.unseen_labels
        if not labels:
            return self.true, self.chosen
        place = {label: index for index, label in enumerate(labels)}
        pairs = [(row, place[label]) for row, found in self.unseen.items() for label in dict.fromkeys(found)]
        rows, columns = zip(*pairs, strict=True)
        shape = (len(self.true), len(labels))
        extra = sparse.csr_array((np.ones(len(pairs), np.int8), (rows, columns)), shape=shape)
        true = sparse.hstack([sparse.csr_array(self.true.astype(np.int8)), extra], format="csr")
        return true, sparse.hstack([sparse.csr_array(self.chosen), sparse.csr_array(shape, dtype=np.int8)], "csr")


def score_heads(logits: NDArray[np.floating[Any]], labels: Labels, schema: Schema) -> dict[str, dict[str, float]]:
    """`score_answers` of logits ``(n, schema.width)``."""
    return score_answers(to_scores(logits, schema), labels, schema)


def flat_scores(logits: NDArray[np.floating[Any]], labels: Labels, schema: Schema) -> dict[str, float]:
    """The scores of `score_heads`, named ``head/metric``."""
    by_head = score_heads(logits, labels, schema)
    return {f"{head}/{name}": value for head, scores in by_head.items() for name, value in scores.items()}


def score_answers(
    scores: Scores, labels: Labels, schema: Schema, unseen: Unseen | None = None
) -> dict[str, dict[str, float]]:
    """Metrics by head name. Rows without a label for a head do not count in its metrics.

    The top head of a taxonomy also has the taxonomy's metrics.

    Args:
        scores: calibrated ``(n, schema.width)``.
        labels: ``(n, sum of label widths)``, as in `polyhead_training.data.corpus.Split`.
        unseen: the labels that training never saw.
    """
    return score_all(answers_of(scores, labels, schema, unseen), schema)


def score_all(answers: Iterable[HeadAnswers], schema: Schema) -> dict[str, dict[str, float]]:
    """`score_answers` of the answers of all heads."""
    by_head = {part.head.name: part for part in answers}
    results = {}
    for head in schema:
        result = score_head(by_head[head.name])
        if head.parent is None and schema.children(head.name):
            result |= _score_taxonomy([by_head[level.name] for level in levels_below(head, schema)], schema)
        results[head.name] = result
    return results


def answers_of(scores: Scores, labels: Labels, schema: Schema, unseen: Unseen | None = None) -> Iterator[HeadAnswers]:
    """What would be served for these scores, per head, with the true labels."""
    best = best_labels(scores, schema)
    rejects = rejected(confidence_of(best, scores, schema), schema) if schema.rejecting_heads else {}
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        known: Mask = np.logical_not(np.isnan(given).any(axis=1))
        head_scores = scores[:, schema.columns[head.name]]
        chosen: NDArray[np.int8]
        true: NDArray[Any]
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                chosen = _one_hot(best[head.name], head.width)[known]
                true = _one_hot(given[known, 0].astype(np.intp), head.width)
            case HeadKind.MULTI_LABEL:
                chosen = over_threshold(head_scores[known], head.thresholds or ()).astype(np.int8)
                true = given[known].astype(np.int8)
            case HeadKind.REGRESSION:
                chosen, true = np.empty((known.sum(), 0), np.int8), given[known]
        found = (unseen or {}).get(head.name, {})
        unseen_rows = among(found, np.flatnonzero(known))
        is_rejected = rejects[head.name][known] if head.name in rejects else None
        yield HeadAnswers(head, known, head_scores[known], chosen, true, unseen_rows, is_rejected)


def among(unseen: Mapping[int, Sequence[str]], rows: NDArray[np.intp]) -> dict[int, Sequence[str]]:
    """The unseen labels of the rows at these indices, by their new place."""
    if not unseen:
        return {}
    places = {int(row): place for place, row in enumerate(rows)}
    return {places[row]: labels for row, labels in unseen.items() if row in places}


def levels_below(head: Head, schema: Schema) -> list[Head]:
    """The head and all heads below it, parents first."""
    return [head, *(level for child in schema.children(head.name) for level in levels_below(child, schema))]


def reliability(confidence: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Mean confidence, share of right decisions and number of decisions ``(bins, 3)``, without empty bins."""
    confidence = np.asarray(confidence, dtype=np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right)]
    filled = counts > 0
    return np.stack([*(total[filled] / counts[filled] for total in sums), counts[filled]], axis=1)


def decisions(answers: HeadAnswers) -> tuple[NDArray[Any], NDArray[Any]]:
    """Confidence and truth of each decision: a single_label head decides once per row, a multi_label head per label.

    In a taxonomy the answer is a label of the best path. It need not have the head's highest score.
    """
    if answers.head.kind == HeadKind.MULTI_LABEL:
        return answers.scores.ravel(), answers.true.ravel()
    best = answers.chosen.argmax(axis=1)[:, None]
    return np.take_along_axis(answers.scores, best, 1)[:, 0], np.take_along_axis(answers.true, best, 1)[:, 0]


def _one_hot(indices: NDArray[np.intp], width: int) -> NDArray[np.int8]:
    return np.equal(indices[:, None], np.arange(width)).astype(np.int8)


def score_head(answers: HeadAnswers) -> dict[str, float]:
    """The metrics of one head, without those of its taxonomy."""
    rows = len(answers.true)
    scores = _SCORES[answers.head.kind](answers) if rows else {}
    return {"rows": rows} | {name: float(value) for name, value in scores.items()}


def _score_single(answers: HeadAnswers) -> dict[str, float]:
    true, chosen, scores, width = answers.true, answers.chosen, answers.scores, answers.head.width
    exact = scores.astype(np.float64)
    right = (true & chosen).any(axis=1)
    has_score = true.any(axis=1)  # the true label is one that the head knows
    # The answer first, then the other labels by score: the order that a client gets for top_k.
    order = np.argsort(-np.where(chosen, np.inf, scores), axis=1, kind="stable")
    ranks = np.where(has_score, np.take_along_axis(true, order, axis=1).argmax(axis=1), width)
    both = _both_classes(true)
    all_true, all_chosen = answers.all_labels()
    # scikit-learn counts these labels if it is given lists of labels; of multi_label heads it counts all labels.
    named = (all_true.sum(axis=0) > 0) | (all_chosen.sum(axis=0) > 0)
    rows = true.sum(axis=0)
    recalls = (true & chosen).sum(axis=0)[rows > 0] / rows[rows > 0]
    likelihood = {}
    if has_score.any():
        shares = exact[has_score] / exact[has_score].sum(axis=1, keepdims=True)
        likelihood["nll"] = metrics.log_loss(true[has_score].argmax(axis=1), shares, labels=range(width))
    return {
        "accuracy": right.mean(),
        # The mean recall over labels that occur.
        "balanced_accuracy": recalls.sum() / (len(recalls) + len(answers.unseen_labels)),
        **_f1(all_true[:, named], all_chosen[:, named]),
        **{f"top_{k}_accuracy": (ranks < k).mean() for k in TOP_K if k < width},
        **_rankings(true[:, both], scores[:, both], "macro"),
        **likelihood,
        "ece": expected_calibration_error(*decisions(answers)),
        **rejection_scores([answers]),
    }


def rejection_scores(answers: Sequence[HeadAnswers]) -> dict[str, float]:
    """Of a head's answers, in one part or several: the share that is not rejected, and how much of that is right.

    Empty if there are no rows or if the head cannot reject.
    """
    parts = [(part, part.rejected) for part in answers if part.rejected is not None and len(part.true)]
    if not parts:
        return {}
    right = np.concatenate([(part.true & part.chosen).any(axis=1) for part, _ in parts])
    answered = np.concatenate([~is_rejected for _, is_rejected in parts])
    of_answered = {"answered_accuracy": float(right[answered].mean())} if answered.any() else {}
    return {"coverage": float(answered.mean()), **of_answered}


def _score_multi(answers: HeadAnswers) -> dict[str, float]:
    true, scores = answers.true, answers.scores
    all_true, all_chosen = answers.all_labels()
    wrong = (all_true != all_chosen).sum(axis=1)  # labels, in each row
    both = _both_classes(true)
    rankings = {
        f"{average}_{name}": value
        for average in ("micro", "macro")
        for name, value in _rankings(true[:, both], scores[:, both], average).items()
    }
    return {
        **_f1(all_true, all_chosen),
        "subset_accuracy": (wrong == 0).mean(),
        "hamming_loss": wrong.mean() / all_true.shape[1],
        **rankings,
        "nll": binary_log_loss(true, scores),
        "ece": expected_calibration_error(*decisions(answers)),
    }


def _score_regression(answers: HeadAnswers) -> dict[str, float]:
    true, values = answers.true[:, 0].astype(np.float64), answers.scores[:, 0].astype(np.float64)
    result = {"mae": metrics.mean_absolute_error(true, values), "rmse": metrics.root_mean_squared_error(true, values)}
    if len(np.unique(true)) > 1:  # R2 compares with the spread of the true values
        result["r2"] = metrics.r2_score(true, values)
    return result


_SCORES = {
    HeadKind.SINGLE_LABEL: _score_single,
    HeadKind.MULTI_LABEL: _score_multi,
    HeadKind.REGRESSION: _score_regression,
}


def _score_taxonomy(levels: list[HeadAnswers], schema: Schema) -> dict[str, float]:
    """Hierarchical precision, recall and F1 (Kiritchenko et al. 2005): of labels and all labels above them.

    Only rows with a known label on every level count.
    """
    known = np.logical_and.reduce([level.known for level in levels])
    if not known.any():
        return {}
    rows = [known[level.known] for level in levels]
    above = _with_ancestors([level.head for level in levels], schema)
    true = np.hstack([level.true[row] for level, row in zip(levels, rows, strict=True)])
    chosen = np.hstack([level.chosen[row] for level, row in zip(levels, rows, strict=True)])
    true_set, chosen_set = true @ above > 0, chosen @ above > 0
    # Labels that training never saw are never found.
    unseen = sum(len(among(level.unseen, np.flatnonzero(row))) for level, row in zip(levels, rows, strict=True))
    found, answered, true_labels = (true_set & chosen_set).sum(), chosen_set.sum(), true_set.sum() + unseen
    return {
        "taxonomy_rows": int(known.sum()),
        "hierarchical_precision": float(found / answered),
        "hierarchical_recall": float(found / true_labels),
        "hierarchical_f1": float(2 * found / (answered + true_labels)),
        "path_accuracy": float((true == chosen).all(axis=1).mean()),
        # One label per level: labels that contradict each other have different ancestors.
        "consistency": float((chosen_set.sum(axis=1) == len(levels)).mean()),
    }


def _with_ancestors(levels: list[Head], schema: Schema) -> Any:
    """0/1 ``(labels, labels)`` over all levels, sparse: each label's row marks the label and all labels above it."""
    names = [(head.name, label) for head in levels for label in head.labels]
    place = {name: index for index, name in enumerate(names)}
    above: list[list[int]] = []
    for name, label in names:  # parents first, so that theirs are complete
        head = schema[name]
        parents = []
        if head.parent is not None and head.parent_of is not None:
            parents = above[place[head.parent, head.parent_of[label]]]
        above.append([len(above), *parents])
    columns = [column for row in above for column in row]
    ends = np.cumsum([0, *map(len, above)])
    return sparse.csr_matrix((np.ones(len(columns), np.int64), columns, ends), shape=(len(names), len(names)))


def _f1(true: Any, chosen: Any) -> dict[str, float]:
    """Of 0/1 matrices, dense or sparse."""
    given, named = sparse.csr_array(true, dtype=np.int64), sparse.csr_array(chosen, dtype=np.int64)
    hits, rows, answered = (each.sum(axis=0) for each in (given.multiply(named), given, named))
    f1 = 2 * hits / np.maximum(rows + answered, 1)
    return {
        "macro_f1": f1.mean(),
        "micro_f1": 2 * hits.sum() / max(rows.sum() + answered.sum(), 1),
        "weighted_f1": (f1 * rows).sum() / max(rows.sum(), 1),
    }


def _rankings(true: NDArray[np.int8], scores: Scores, average: str) -> dict[str, float]:
    """Metrics of labels ``(rows, labels)`` that all have positive and negative rows."""
    if not true.shape[1]:
        return {}
    if average == "micro":  # all labels are one
        true, scores = true.reshape(-1, 1), scores.reshape(-1, 1)
    auroc, average_precision = rankings_of_labels(true, scores)
    return {"auroc": auroc.mean(), "average_precision": average_precision.mean()}


def binary_log_loss(true: NDArray[np.int8], scores: Scores) -> float:
    """scikit-learn's log_loss of all labels together; it would make a copy of them per class."""
    exact, least = scores.astype(np.float64), np.finfo(np.float64).eps
    return float(-np.log(np.clip(np.where(true, exact, 1 - exact), least, 1 - least)).mean())


def _both_classes(true: NDArray[np.int8]) -> Mask:
    return np.logical_and(true.any(axis=0), ~true.all(axis=0))


def expected_calibration_error(confidence: NDArray[Any], right: NDArray[Any]) -> float:
    """Distance between confidence and the share of right decisions, over bins of equal width, weighted by decisions."""
    mean_confidence, share_right, counts = reliability(confidence, right).T
    return float((np.abs(mean_confidence - share_right) * counts).sum() / counts.sum())
