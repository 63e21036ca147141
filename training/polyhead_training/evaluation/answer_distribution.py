"""The distribution of a model's answers to its validation rows, which servers compare with their callers' texts."""

from __future__ import annotations

import numpy as np

from polyhead.answer_counter import AnswerCounter
from polyhead.distribution import ANSWERS, Distribution, counted_heads, distribution_of, most_labels, rounded_edges
from polyhead.schema import Head, HeadKind
from polyhead.scripts import scripts_of
from polyhead_training.evaluation.evaluation import Evaluation

BUCKETS = 10  # of a regression: as many rows in each


def answer_distribution(evaluation: Evaluation) -> Distribution:
    """Counts the engine's answers: its most frequent labels each, and values in buckets of as many rows."""
    schema, scores = evaluation.schema, evaluation.scores
    truncated, scripts = evaluation.truncated.tolist(), scripts_of(evaluation.texts)
    heads = counted_heads(schema)
    edges = {head.name: _edges(evaluation, head) for head in heads if head.kind == HeadKind.REGRESSION}
    labelled = [head for head in heads if head.kind != HeadKind.REGRESSION]
    every = AnswerCounter(schema, {head.name: list(head.labels) for head in labelled}, edges)
    answered: dict[str, list[int]] = {}
    for bucket, count in zip(every.buckets, every.count(scores, truncated, scripts).tolist(), strict=True):
        if bucket.of == ANSWERS:
            answered.setdefault(bucket.head, []).append(count)
    most = most_labels(schema)
    labels = {}
    for head in labelled:
        counts = answered[head.name][: len(head.labels)]  # the buckets of labels come first, in the order of the labels
        order = sorted(range(len(head.labels)), key=lambda index: -counts[index])
        labels[head.name] = [head.labels[index] for index in order[:most]]
    counter = AnswerCounter(schema, labels, edges)
    found = counter.count(scores, truncated, scripts)
    return distribution_of(len(scores), labels, edges, dict(zip(counter.buckets, found.tolist(), strict=True)))


def _edges(evaluation: Evaluation, head: Head) -> list[float]:
    values = evaluation.scores[:, evaluation.schema.columns[head.name]]
    return rounded_edges(np.quantile(values, np.arange(1, BUCKETS) / BUCKETS).tolist())
