"""Evaluations of many shapes, of random answers, to write reports from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polyhead.decode import to_scores
from polyhead.schema import Head, Schema
from polyhead_client.explanation import PartEffect, Reason
from polyhead_client.words import SplitText, TextPart
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import score_answers
from polyhead_training.evaluation.mistakes import confident_places
from polyhead_training.evaluation.suspects import Suspect

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x> $x_{ `code` | 東京 \"quoted\""
LONG = "Retroviral Integrase Strand Transfer Inhibitors, Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen"
RIGHT_TO_LEFT = "بطاقة الائتمان المفقودة"
HISTORY: list[dict[str, Any]] = [
    {"epoch": 0.5, "step": 50, "loss": 2.0},
    {"epoch": 1.0, "step": 100, "loss": 1.6},
    {"epoch": 1.0, "step": 100, "eval_loss": 1.5, "eval_kind/accuracy": 0.5, "eval_stars/mae": 1.2},
    {"epoch": 2.0, "step": 200, "loss": 1.1},
    {"epoch": 2.0, "step": 200, "eval_loss": 1.3, "eval_kind/accuracy": 0.6, "eval_stars/mae": 0.9},
    {"epoch": 2.0, "train_runtime": 3.0},
]


def random_labels(schema: Schema, rows: int, random: np.random.Generator) -> np.ndarray:
    """True labels in the form of a split: small indices are more frequent."""
    columns = []
    for head in schema:
        match head.kind:
            case "single_label":
                columns.append((head.width * random.random((rows, 1)) ** 2).astype(int))
            case "multi_label":
                columns.append(random.random((rows, head.width)) < 0.3)
            case _:
                low, high = head.y_range or (0, 1)
                columns.append(low + (high - low) * random.random((rows, 1)))
    return np.hstack(columns).astype(np.float32)


def answered(schema: Schema, labels: np.ndarray, random: np.random.Generator, skill: float = 1.5) -> np.ndarray:
    """Logits that prefer the true labels more or less."""
    logits = random.normal(size=(len(labels), schema.width)).astype(np.float32)
    for head in schema:
        given, columns = labels[:, schema.label_columns[head.name]], schema.columns[head.name]
        match head.kind:
            case "single_label":
                logits[np.arange(len(labels)), columns.start + given[:, 0].astype(int)] += skill
            case "multi_label":
                logits[:, columns] += skill * (2 * given - 1)
            case _:
                logits[:, columns] += given
    return logits


def evaluation_of(
    schema: Schema,
    count: int,
    /,
    *,
    known: bool = True,
    texts: Sequence[str] = (HOSTILE,),
    baselines: bool = False,
    **fields: Any,
) -> tuple[Evaluation, np.ndarray]:
    """An evaluation and its logits.

    Args:
        known: whether the rows have labels.
        texts: are repeated.
        baselines: whether it has some: a weak linear model and a weaker constant answer.
        fields: of the evaluation.
    """
    random = np.random.default_rng(0)
    labels = random_labels(schema, count, random)
    logits = answered(schema, labels, random)
    if not known:
        labels[:] = math.nan
    scores = to_scores(logits, schema)
    metrics = score_answers(scores, labels, schema)
    if baselines:
        weak = {"linear": 0.9, "majority": 0.4}
        fields["baselines"] = {
            head: {
                name: {metric: value * share for metric, value in found.items() if metric != "rows"}
                for name, share in weak.items()
            }
            for head, found in metrics.items()
        }
    evaluation = Evaluation(
        schema=schema,
        max_length=16,
        texts=[f"{texts[i % len(texts)]} {i}" for i in range(count)],
        labels=labels,
        scores=scores,
        token_counts=np.full(count, 16, np.int32),
        truncated=np.arange(count) % 2 == 0,
        metrics=metrics,
        dropped=2,
        **{"slices": {"<b>country</b>": {HOSTILE: {"rows": count, "heads": metrics}}}} | fields,
    )
    return evaluation, logits


def with_made_up_reasons(evaluation: Evaluation) -> Evaluation:
    """Reasons for the most confident mistakes of the heads with labels, in which the words raise and lower in turn."""
    reasons = {}
    for answers in evaluation.answers:
        if answers.head.kind == "regression":
            continue
        for row, label in confident_places(answers)[:5]:
            text, name = evaluation.texts[row], answers.head.labels[label]
            words = [
                PartEffect(word.text, word.start, word.end, effect=None if place == 5 else 0.4 - 0.1 * (place % 9))
                for place, word in enumerate(SplitText.split(text).words)
            ]
            read, unread = words[:40], words[40:]
            end = tuple(TextPart(text[one.start : one.end], one.start, one.end) for one in unread)
            reasons[answers.head.name, row, name] = Reason(answers.head.name, name, 0.9, tuple(read), (), end, text)
    return replace(evaluation, reasons=reasons)


def suspects_of(head: str, count: int) -> list[Suspect]:
    """Suspects of the first rows."""
    return [Suspect(head, index, "given label", RIGHT_TO_LEFT, 0.9) for index in range(count)]


def many_heads(count: int) -> Schema:
    """Heads of all kinds, with long names, long labels and labels from right to left."""
    heads = []
    for place in range(count):
        match place % 3:
            case 0:
                labels = (LONG, RIGHT_TO_LEFT, "a", HOSTILE, "never", "")[: 5 if place else 4]
                heads.append(Head(name=f"topic_{place}", kind="single_label", labels=labels))
            case 1:
                heads.append(Head(name=f"a_head_with_a_long_name_{place}", kind="multi_label", labels=("x", LONG)))
            case _:
                heads.append(Head(name=f"price_{place}", kind="regression", y_range=(50_000, 160_000)))
    return Schema(heads)
