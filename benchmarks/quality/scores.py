"""Scores of all methods per head: mean and spread over seeds, and the product beside the better linear model.

A head is won if the product's worst seed is better than the best seed of the better linear model, and a paired test of
the two runs with the median score has p below 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.quality.answers import Answer, Answers
from benchmarks.quality.data_sets import Label
from benchmarks.quality.methods import METHODS, PRODUCT
from benchmarks.quality.peer_data import targets
from polyhead.schema import Head, HeadKind
from polyhead_training.evaluation.headline import headline_parts
from polyhead_training.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, HeadAnswers, score_head
from polyhead_training.evaluation.paired_tests import PairedTest, mcnemar, permutation

REPORTED = {
    HeadKind.SINGLE_LABEL: ("accuracy", "macro_f1", "ece"),
    HeadKind.MULTI_LABEL: ("micro_f1", "macro_f1", "ece"),
    HeadKind.REGRESSION: ("mae",),
}
SIGNIFICANT = 0.05
ENOUGH_ROWS = 50  # of training: a label with so many should be answered
COVERAGE = 0.95  # of the texts that belong to a label


@dataclass(frozen=True)
class Truth:
    """The true labels of the test rows of one head.

    Attributes:
        frequent: which of the head's labels have enough training rows.
    """

    head: Head
    labels: Sequence[Label]
    frequent: NDArray[np.bool_]


def make_truth(head: Head, test: Sequence[Label], train: Sequence[Label]) -> Truth:
    """The truth of a head from the labels of test and training rows."""
    counts = np.zeros(len(head.labels), np.int64)
    for label in train:
        for each in label if isinstance(label, list) else [label]:
            if each in head.index_of:
                counts[head.index_of[each]] += 1
    return Truth(head, test, counts >= ENOUGH_ROWS)


def answered(truth: Truth, answer: Answer) -> HeadAnswers:
    """The answers in the rows whose label is known; labels that no training row has count as never found."""
    head = truth.head
    known = np.array([label is not None for label in truth.labels])
    rows = [label for label in truth.labels if label is not None]
    unseen: dict[int, list[str]] = {}
    for place, label in enumerate(rows):
        given = label if isinstance(label, list) else [str(label)]
        if missing := [each for each in given if head.labels and each not in head.index_of]:
            unseen[place] = missing
    found = targets(head, rows)
    match head.kind:
        case HeadKind.SINGLE_LABEL:
            true = np.zeros((len(rows), head.width), np.int8)
            true[np.flatnonzero(found.known), found.values] = 1
        case HeadKind.MULTI_LABEL:
            true = found.values
        case HeadKind.REGRESSION:
            true = found.values[:, None]
    return HeadAnswers(head, known, answer.scores[known], answer.chosen[known], true, unseen)


def score_run(truth: Truth, answer: Answer) -> dict[str, float]:
    """The metrics of one run, and how many frequent labels that occur it never answers."""
    answers = answered(truth, answer)
    found = score_head(answers)
    scores = {metric: found[metric] for metric in REPORTED[truth.head.kind]}
    if truth.head.labels:
        never = truth.frequent & answers.true.any(axis=0) & ~answers.chosen.any(axis=0)
        scores["never_answered"] = float(never.sum())
    return scores


def score_outside(answers: Answers) -> dict[str, float] | None:
    """How well a run's certainty tells texts that belong to a label from others; None if it was not asked.

    ``auroc``, and ``rejected``: the share of the others that is rejected if 95 % of the texts that belong are answered.
    """
    if answers.inside is None or answers.outside is None:
        return None
    belongs = np.repeat([1, 0], [len(answers.inside), len(answers.outside)])
    threshold = np.quantile(answers.inside, 1 - COVERAGE)
    return {
        "auroc": float(roc_auc_score(belongs, np.concatenate([answers.inside, answers.outside]))),
        "rejected": float((answers.outside < threshold).mean()),
    }


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, lowest, highest and all values of each metric."""
    found = {}
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        found[metric] = {"mean": float(np.mean(values)), "low": min(values), "high": max(values), "values": values}
    return found


def score_head_of_all(truth: Truth, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """One head: the scores of each method that answers it, and the product beside the better linear model.

    Args:
        answers: by method, one per seed.
    """
    metric = HEADLINE[truth.head.kind]
    methods = {name: over_seeds([score_run(truth, run) for run in runs]) for name, runs in answers.items() if runs}
    result: dict[str, Any] = {"kind": truth.head.kind.value, "metric": metric, "methods": methods}
    linear = [name for name in methods if METHODS[name].is_linear]
    if PRODUCT not in methods or not linear:
        return result
    sign = -1 if metric in LOWER_IS_BETTER else 1
    peer = max(linear, key=lambda name: sign * methods[name][metric]["mean"])
    ours, theirs = methods[PRODUCT][metric], methods[peer][metric]
    pair = [answered(truth, answers[name][median_run(methods[name][metric]["values"])]) for name in (peer, PRODUCT)]
    test = paired_test(pair[0], pair[1])
    worst = min(sign * value for value in ours["values"])
    is_beyond = worst > max(sign * value for value in theirs["values"])
    is_better = sign * test.difference > 0
    result["against"] = {
        "peer": peer,
        "margin": sign * (ours["mean"] - theirs["mean"]),
        "is_beyond_spread": is_beyond,
        "test": test.name,
        "p": test.p,
        "is_won": is_beyond and is_better and test.p < SIGNIFICANT,
    }
    return result


def median_run(values: Sequence[float]) -> int:
    """The index of the run with the median value; of an even number of runs the lower one of the two in the middle."""
    return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])


def paired_test(first: HeadAnswers, second: HeadAnswers) -> PairedTest:
    """The second one's main metric minus the first one's, on the same rows."""
    parts = headline_parts(first), headline_parts(second)
    if first.head.kind == HeadKind.SINGLE_LABEL:
        return mcnemar(parts[0][:, 0] > 0, parts[1][:, 0] > 0)
    return permutation(*parts)


def summarize(sets: Mapping[str, Any], hours: float) -> dict[str, Any]:
    """The last line: how many heads there are, how many are won, and the worst margin (negative: a peer is better)."""
    heads = [head for found in sets.values() for head in found["heads"].values()]
    against = [head["against"] for head in heads if "against" in head]
    return {
        "heads": len(heads),
        "heads_won": sum(each["is_won"] for each in against),
        "worst_margin": round(min(each["margin"] for each in against), 4) if against else None,
        "hours": round(hours, 2),
    }
