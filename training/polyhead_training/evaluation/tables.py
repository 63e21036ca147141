"""Tables of the report: each label's scores, and the mistakes of which the model was most certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from polyhead_training.evaluation.metrics import Answers
from polyhead_training.evaluation.plots import shorten

MOST_MISTAKES = 12
TEXT_LENGTH = 600


def label_table(answers: Answers) -> tuple[list[str], list[list[Any]]]:
    """Column names and a row a label, the most frequent first; none of a regression."""
    head = answers.head
    if head.kind == "regression" or not len(answers.true):
        return [], []
    scores = precision_recall_fscore_support(answers.true, answers.chosen, average=None, zero_division=0)
    precision, recall, f1, rows = (values.tolist() for values in scores)
    named = answers.chosen.sum(axis=0).tolist()
    columns = ["label", "rows", "answered", "precision", "recall", "F1"]
    table = [list(row) for row in zip(head.labels, rows, named, precision, recall, f1, strict=True)]
    if head.thresholds is not None:
        columns.append("threshold")
        table = [[*row, threshold] for row, threshold in zip(table, head.thresholds, strict=True)]
    return columns, sorted(table, key=lambda row: -row[1])


def mistakes(answers: Answers, texts: Sequence[str]) -> list[dict[str, str]]:
    """Wrong answers with their texts, the most confident first."""
    rows = np.flatnonzero(answers.known)
    return [
        {"answer": answer, "true": true, "text": shorten(texts[rows[row]], TEXT_LENGTH)}
        for row, answer, true in _wrong(answers)
    ]


def _wrong(answers: Answers) -> list[tuple[int, str, str]]:
    head, true, scores = answers.head, answers.true, answers.scores.astype(np.float64)
    if not len(true):
        return []
    if head.kind == "regression":
        order = np.argsort(-np.abs(scores - true)[:, 0], kind="stable")[:MOST_MISTAKES]
        order = order[scores[order, 0] != true[order, 0]]
        return [(int(row), f"{scores[row, 0]:.4g}", f"{true[row, 0]:.4g}") for row in order]
    wrong = answers.chosen & ~true.astype(bool) if head.kind == "single_label" else answers.chosen != true
    found_rows, found_labels = np.nonzero(wrong)
    found = scores[found_rows, found_labels]
    certainty = np.where(answers.chosen[found_rows, found_labels], found, 1 - found)
    result = []
    for i in np.argsort(-certainty, kind="stable")[:MOST_MISTAKES]:
        row, label = int(found_rows[i]), int(found_labels[i])
        if head.kind == "single_label":
            result.append((row, f"{head.labels[label]} ({found[i]:.3f})", head.labels[int(true[row].argmax())]))
        elif answers.chosen[row, label]:
            result.append((row, f"{head.labels[label]} ({found[i]:.3f})", "not this label"))
        else:
            result.append((row, f"not {head.labels[label]} ({found[i]:.3f})", head.labels[label]))
    return result
