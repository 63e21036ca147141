"""Validation scores a head, computed by scikit-learn from the decoded answers' scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from polyhead.decode import best_paths, over_threshold, to_scores
from polyhead.schema import Head, Schema


def evaluate(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.float32], schema: Schema
) -> dict[str, dict[str, float]]:
    """Scores by head name; rows without a label for a head do not count in it.

    Args:
        logits: ``(n, schema.width)``.
        labels: ``(n, sum of label widths)``, as in `polyhead_training.data.Split`.
    """
    scores = to_scores(logits, schema)
    # A taxonomy's heads are scored on the path that is answered, not on each head's own best label.
    paths = [best_paths(row, schema) for row in scores] if any(head.parent for head in schema) else []
    results, column = {}, 0
    for head in schema:
        known_labels = labels[:, column : column + head.label_width]
        known = ~np.isnan(known_labels).any(axis=1)
        head_scores = scores[:, schema.columns[head.name]]
        predicted = head_scores.argmax(axis=1)
        if paths and head.name in paths[0]:
            predicted = np.array([path[head.name] for path in paths])
        results[head.name] = _evaluate_head(head, head_scores[known], predicted[known], known_labels[known])
        column += head.label_width
    return results


def _evaluate_head(
    head: Head, scores: NDArray[np.float32], predicted: NDArray[np.intp], labels: NDArray[np.float32]
) -> dict[str, float]:
    if not len(labels):
        return {"rows": 0}
    result = {"rows": len(labels)}
    match head.kind:
        case "single_label":
            true = labels[:, 0].astype(int)
            return result | {
                "accuracy": float(metrics.accuracy_score(true, predicted)),
                "macro_f1": float(metrics.f1_score(true, predicted, average="macro", zero_division=0)),
            }
        case "multi_label":
            true, chosen = labels.astype(int), over_threshold(scores, head.thresholds or ()).astype(int)
            return result | {
                "micro_f1": float(metrics.f1_score(true, chosen, average="micro", zero_division=0)),
                "macro_f1": float(metrics.f1_score(true, chosen, average="macro", zero_division=0)),
                "subset_accuracy": float((true == chosen).all(axis=1).mean()),
            }
        case "regression":
            return result | {
                "mae": float(metrics.mean_absolute_error(labels[:, 0], scores[:, 0])),
                "rmse": float(metrics.root_mean_squared_error(labels[:, 0], scores[:, 0])),
            }


HEADLINE = {"single_label": "accuracy", "multi_label": "micro_f1", "regression": "mae"}
