"""Whether an answer agrees with its golden row.

Scores may differ by the tolerance, since batches and precisions round differently. So a label may be swapped with
another, or cross its threshold, only where the golden scores leave that open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from loadtest.golden import GoldenRow
from polyhead_client import HeadSchema, LabelScore, ModelSchema, MultiLabel, Prediction, Regression, SingleLabel

TOLERANCE = 1e-3


def find_mismatches(
    prediction: Prediction, golden: GoldenRow, schema: ModelSchema, tolerance: float = TOLERANCE
) -> list[str]:
    """Compares an answer that was asked for without options.

    Returns:
        One description a mismatch; empty if the answer is right.
    """
    if prediction.error is not None:
        return [f"an error instead of an answer: {prediction.error}"]
    found = []
    if prediction.token_count != golden.token_count:
        found.append(f"token_count {prediction.token_count}, expected {golden.token_count}")
    if prediction.truncated != golden.truncated:
        found.append(f"truncated {prediction.truncated}, expected {golden.truncated}")
    names = [head.name for head in schema.heads]
    if sorted(prediction.heads) != sorted(names):
        return [*found, f"heads {sorted(prediction.heads)}, expected {sorted(names)}"]

    taxonomy = {head.name for head in schema.heads if head.parent} | {head.parent for head in schema.heads}
    for head in schema.heads:
        scores = golden.scores[schema.columns[head.name]]
        by_label = dict(zip(head.labels, scores, strict=False))
        match head.kind, prediction.heads[head.name]:
            case "single_label", SingleLabel(top):
                found += _compare_scores(head, top, by_label, tolerance)
                if head.name not in taxonomy:
                    found += _compare_best(head, top, by_label, tolerance)
            case "multi_label", MultiLabel(labels):
                found += _compare_scores(head, labels, by_label, tolerance)
                found += _compare_chosen(head, labels, by_label, tolerance)
            case "regression", Regression(value):
                if abs(value - scores[0]) > tolerance * max(1.0, abs(scores[0])):
                    found.append(f"{head.name}: value {value:.6g}, expected {scores[0]:.6g}")
            case kind, answer:
                found.append(f"{head.name}: a {type(answer).__name__}, expected a {kind}")
    if not found:
        found += _compare_paths(prediction, golden, schema, tolerance)
    return found


def _compare_scores(
    head: HeadSchema, answered: Sequence[LabelScore], by_label: Mapping[str, float], tolerance: float
) -> list[str]:
    found = []
    for one in answered:
        if one.label not in by_label:
            found.append(f"{head.name}: label {one.label!r} is not in the schema")
        elif abs(one.score - by_label[one.label]) > tolerance:
            found.append(f"{head.name}: {one.label!r} scored {one.score:.6f}, expected {by_label[one.label]:.6f}")
    labels = [one.label for one in answered]
    if len(set(labels)) != len(labels):
        found.append(f"{head.name}: a label occurs twice in {labels}")
    return found


def _compare_best(
    head: HeadSchema, top: Sequence[LabelScore], by_label: Mapping[str, float], tolerance: float
) -> list[str]:
    expected = max(by_label, key=lambda label: by_label[label])
    if len(top) != 1:
        return [f"{head.name}: {len(top)} labels, expected only {expected!r}"]
    # Both scores may be off by the tolerance, so a gap of twice that can turn round.
    if by_label[expected] - by_label.get(top[0].label, -math.inf) > 2 * tolerance:
        return [f"{head.name}: {top[0].label!r}, expected {expected!r}"]
    return []


def _compare_chosen(
    head: HeadSchema, answered: Sequence[LabelScore], by_label: Mapping[str, float], tolerance: float
) -> list[str]:
    found = []
    thresholds = dict(zip(head.labels, head.thresholds or (), strict=True))
    chosen = {one.label for one in answered}
    for label, score in by_label.items():
        expected = score >= thresholds[label]
        if expected != (label in chosen) and abs(score - thresholds[label]) > tolerance:
            found.append(f"{head.name}: {label!r} is {'missing' if expected else 'there'} at score {score:.6f}")
    for one in answered:
        if one.threshold != thresholds.get(one.label):
            found.append(f"{head.name}: {one.label!r} has threshold {one.threshold}, not the schema's")
    if any(one.score < after.score for one, after in pairwise(answered)):
        found.append(f"{head.name}: labels are not best first: {[one.label for one in answered]}")
    return found


def _compare_paths(prediction: Prediction, golden: GoldenRow, schema: ModelSchema, tolerance: float) -> list[str]:
    """Checks each taxonomy: its labels form a path, and none is more probable by the golden scores."""
    found: list[str] = []
    children: dict[str, list[HeadSchema]] = {}
    for head in schema.heads:
        if head.parent:
            children.setdefault(head.parent, []).append(head)

    def scores_of(head: HeadSchema) -> dict[str, float]:
        return dict(zip(head.labels, golden.scores[schema.columns[head.name]], strict=True))

    def best_below(head: HeadSchema, label: str) -> float:
        """The highest product of scores from a label downwards."""
        product = scores_of(head)[label]
        for child in children.get(head.name, []):
            below = [name for name in child.labels if (child.parent_of or {}).get(name) == label]
            product *= max((best_below(child, name) for name in below), default=0.0)
        return product

    for root in schema.heads:
        if root.parent or root.name not in children:
            continue
        members, product = [root], 1.0
        for head in members:  # grows while it is walked
            members += children.get(head.name, [])
        answers = {head.name: prediction.heads[head.name] for head in members}
        chosen = {name: answer.label for name, answer in answers.items() if isinstance(answer, SingleLabel)}
        for head in members:
            product *= scores_of(head)[chosen[head.name]]
            if head.parent and (head.parent_of or {}).get(chosen[head.name]) != chosen[head.parent]:
                found.append(f"{head.name}: {chosen[head.name]!r} contradicts {head.parent} {chosen[head.parent]!r}")
        best = max(best_below(root, label) for label in root.labels)
        # Each factor is at most 1 and off by the tolerance at most, and so each product by the sum.
        if not found and best - product > 2 * tolerance * len(members):
            found.append(f"{root.name}: path {chosen} has {product:.6f}, the best has {best:.6f}")
    return found
