"""The answers that a load test expects, and whether an answer is the expected one or the answer to another text.

They come from a checkpoint's ``golden.jsonl`` or from ``polyhead-golden``. Scores may differ by the tolerance, because
batches and precisions round differently. Therefore a label may change places with another, cross its threshold, or be
rejected, but only if the expected scores are that close.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest import CannotRunError
from polyhead_client import (
    BadResponseError,
    HeadKind,
    HeadSchema,
    LabelScore,
    ModelSchema,
    MultiLabel,
    Prediction,
    Regression,
    SingleLabel,
)
from polyhead_rows.errors import TableError
from polyhead_rows.table_file import ReadOptions, Row, open_table

TOLERANCE = 1e-3  # what fp32 scores of two machines and batch sizes may differ by
FIELDS = {"text": str, "scores": list, "token_count": int, "truncated": bool}
OPTIONAL_FIELDS = {"fields": dict, "heads": dict, "polyhead": dict}


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """One text and its expected answer.

    Attributes:
        line: counts from 1.
        text: what is sent: a text, or the fields of the model's template as JSON.
        scores: in the order of the schema.
        heads: the model's heads, if the line names them; a golden file has them in its first line.
    """

    line: int
    text: str
    scores: tuple[float, ...]
    token_count: int
    truncated: bool
    heads: tuple[HeadSchema, ...] | None = None


def read_expected(path: Path) -> list[ExpectedAnswer]:
    """Reads a file of expected answers.

    Raises:
        CannotRunError: the file cannot be read or is empty, or a line breaks the checkpoint's contract.
    """
    try:
        table = open_table(str(path), ReadOptions(format="jsonl"))
        with closing(table.rows()) as rows:
            answers = [_read_row(row, table.place_of(row)) for row in rows]
    except TableError as error:
        raise CannotRunError(f"{error}; expected a checkpoint's golden.jsonl") from error
    if not answers:
        raise CannotRunError(f"{path}: is empty; expected a checkpoint's golden.jsonl")
    wanted = len(answers[0].scores)
    for answer in answers:
        if len(answer.scores) != wanted:
            raise CannotRunError(
                f"{path}:{answer.line}: scores must be as many as in the first line ({wanted}), "
                f"got {len(answer.scores)}"
            )
    return answers


def read_heads(path: Path) -> tuple[HeadSchema, ...] | None:
    """The heads in the checkpoint's ``config.json``: labels and thresholds that the server's schema must have.

    Returns:
        None if there is no such file.

    Raises:
        CannotRunError: the file has no heads.
    """
    if not path.exists():
        return None
    try:
        return _heads_of(json.loads(path.read_text(encoding="utf-8"))["polyhead"], str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CannotRunError(f"{path}: has no heads of a checkpoint ({error})") from error


def _heads_of(section: Any, place: str) -> tuple[HeadSchema, ...]:
    """The heads in the ``polyhead`` section of a config.json."""
    try:
        return ModelSchema.from_json(json.dumps({"max_length": section["max_length"], "heads": section["heads"]})).heads
    except (ValueError, LookupError, TypeError, BadResponseError) as error:
        raise CannotRunError(f"{place}: has no heads of a checkpoint ({error})") from error


def _read_row(row: Row, place: str) -> ExpectedAnswer:
    fields = row.fields
    if fields is None:
        raise CannotRunError(f"{place}: {row.reason}")
    if missing := [name for name in FIELDS if name not in fields]:
        raise CannotRunError(f"{place}: missing field {missing[0]!r}")
    allowed = FIELDS | OPTIONAL_FIELDS
    if unknown := sorted(set(fields) - set(allowed)):
        raise CannotRunError(f"{place}: unknown field {unknown[0]!r}; allowed are {', '.join(allowed)}")
    for name, kind in allowed.items():
        if name in fields and type(fields[name]) is not kind:  # isinstance would take true for an int
            raise CannotRunError(f"{place}: {name} must be {kind.__name__}, got {type(fields[name]).__name__}")
    if not fields["text"].strip():
        raise CannotRunError(f"{place}: text must not be blank")
    if fields["token_count"] < 1:
        raise CannotRunError(f"{place}: token_count must be at least 1, got {fields['token_count']}")
    if not fields["scores"]:
        raise CannotRunError(f"{place}: scores must not be empty")
    for score in fields["scores"]:
        if type(score) not in (int, float) or not math.isfinite(score):
            raise CannotRunError(f"{place}: scores must be finite numbers, got {score!r}")
    scores = tuple(float(score) for score in fields["scores"])
    return ExpectedAnswer(
        row.line or row.number,
        json.dumps(fields["fields"], ensure_ascii=False) if "fields" in fields else fields["text"],
        scores,
        fields["token_count"],
        fields["truncated"],
        _heads_of(fields["polyhead"], place) if "polyhead" in fields else None,
    )


def find_mismatches(
    prediction: Prediction, expected: ExpectedAnswer, schema: ModelSchema, tolerance: float = TOLERANCE
) -> list[str]:
    """Compares an answer to a request without options.

    Returns:
        One description per mismatch; empty if the answer is right.
    """
    if prediction.error is not None:
        return [f"an error instead of an answer: {prediction.error}"]
    found = []
    if prediction.token_count != expected.token_count:
        found.append(f"token_count {prediction.token_count}, expected {expected.token_count}")
    if prediction.truncated != expected.truncated:
        found.append(f"truncated {prediction.truncated}, expected {expected.truncated}")
    names = [head.name for head in schema.heads]
    if sorted(prediction.heads) != sorted(names):
        return [*found, f"heads {sorted(prediction.heads)}, expected {sorted(names)}"]

    scores = {name: expected.scores[columns] for name, columns in schema.columns.items()}
    by_head = {head.name: dict(zip(head.labels, scores[head.name], strict=False)) for head in schema.heads}
    taxonomy = {head.name for head in schema.heads if head.parent} | {head.parent for head in schema.heads}
    for head in schema.heads:
        by_label = by_head[head.name]
        answer = prediction.heads[head.name]
        match head.kind, answer:
            case HeadKind.SINGLE_LABEL, SingleLabel((top,)):
                found += _compare_scores(head, [top], by_label, tolerance)
                best = max(by_label, key=lambda one: by_label[one])
                gap = by_label[best] - by_label.get(top.label, -math.inf)
                # Each of the two scores may differ by the tolerance, so a gap of up to twice that can change its sign.
                if head.name not in taxonomy and gap > 2 * tolerance:
                    found.append(f"{head.name}: {top.label!r}, expected {best!r}")
            case HeadKind.SINGLE_LABEL, SingleLabel(labels):
                found.append(f"{head.name}: {len(labels)} labels, expected one")
            case HeadKind.MULTI_LABEL, MultiLabel(labels):
                found += _compare_scores(head, labels, by_label, tolerance)
                found += _compare_chosen(head, labels, by_label, tolerance)
            case HeadKind.REGRESSION, Regression(value):
                (score,) = scores[head.name]
                if abs(value - score) > head.allowed(score, tolerance):
                    found.append(f"{head.name}: value {value:.6g}, expected {score:.6g}")
            case _:
                found.append(f"{head.name}: a {type(answer).__name__}, expected a {head.kind}")
    found += _compare_rejected(prediction, by_head, schema, tolerance)
    return found or _compare_paths(prediction, by_head, schema, tolerance)


def find_owner(
    prediction: Prediction,
    asked: ExpectedAnswer,
    answers: Sequence[ExpectedAnswer],
    schema: ModelSchema,
    tolerance: float,
) -> ExpectedAnswer | None:
    """Another text for which the answer would be right, so that it was given to the wrong caller; None if none is."""
    given = _scores_by_column(prediction, schema)
    heads = [head for head in schema.heads for _ in range(head.width)]  # of each column
    for other in answers:
        if other.text == asked.text or other.token_count != prediction.token_count:
            continue
        # The full comparison takes a hundred times longer, and there may be thousands of texts.
        near = all(
            abs(other.scores[column] - score) <= heads[column].allowed(score, tolerance) for column, score in given
        )
        if near and not find_mismatches(prediction, other, schema, tolerance):
            return other
    return None


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


def _compare_rejected(
    prediction: Prediction, by_head: Mapping[str, Mapping[str, float]], schema: ModelSchema, tolerance: float
) -> list[str]:
    """Checks that an answer has no label if its expected score, or that of a level above it, is below reject_below."""
    found = []
    heads = {head.name: head for head in schema.heads}
    for head in schema.heads:
        answer = prediction.heads[head.name]
        if not isinstance(answer, SingleLabel):
            continue
        margins: list[float] = []  # of this level and of all above it: how far the score is above the bound
        level: HeadSchema | None = head
        while level is not None:
            above = prediction.heads[level.name]
            if level.reject_below is not None and isinstance(above, SingleLabel):
                # Its scores are compared; what the tolerance allows a certainty depends on all of them.
                confidence = (
                    above.certainty if level.reject_by == "certainty" else by_head[level.name].get(above.top[0].label)
                )
                margins.append((confidence or 0.0) - level.reject_below)
            level = heads.get(level.parent or "")
        if (answer.rejected is None) != (not margins):
            found.append(f"{head.name}: rejected is {answer.rejected}, but the schema says otherwise")
        elif margins and answer.rejected != (min(margins) < 0) and abs(min(margins)) > tolerance:
            found.append(f"{head.name}: rejected is {answer.rejected}, although its score is not near reject_below")
    return found


def _compare_paths(
    prediction: Prediction, by_head: Mapping[str, Mapping[str, float]], schema: ModelSchema, tolerance: float
) -> list[str]:
    """Checks each taxonomy: its labels form a path, and no path is more probable by the expected scores."""
    found: list[str] = []
    children: dict[str, list[HeadSchema]] = {}
    for head in schema.heads:
        if head.parent:
            children.setdefault(head.parent, []).append(head)

    def best_below(head: HeadSchema, label: str) -> float:
        """The highest product of scores from a label downwards."""
        product = by_head[head.name][label]
        for child in children.get(head.name, []):
            below = [name for name in child.labels if (child.parent_of or {}).get(name) == label]
            product *= max((best_below(child, name) for name in below), default=0.0)
        return product

    for root in schema.heads:
        if root.parent or root.name not in children:
            continue
        members, product = [root], 1.0
        for head in members:  # the loop appends to the list
            members += children.get(head.name, [])
        answers = {head.name: prediction.heads[head.name] for head in members}
        chosen = {name: answer.top[0].label for name, answer in answers.items() if isinstance(answer, SingleLabel)}
        for head in members:
            product *= by_head[head.name][chosen[head.name]]
            if head.parent and (head.parent_of or {}).get(chosen[head.name]) != chosen[head.parent]:
                found.append(f"{head.name}: {chosen[head.name]!r} contradicts {head.parent} {chosen[head.parent]!r}")
        best = max(best_below(root, label) for label in root.labels)
        # Each factor is at most 1 and differs by at most the tolerance, so a product differs by at most their sum.
        if not found and best - product > 2 * tolerance * len(members):
            found.append(f"{root.name}: path {chosen} has {product:.6f}, the best has {best:.6f}")
    return found


def _scores_by_column(prediction: Prediction, schema: ModelSchema) -> list[tuple[int, float]]:
    found = []
    for head in schema.heads:
        first = schema.columns[head.name].start
        match prediction.heads.get(head.name):
            case Regression(value):
                found.append((first, value))
            case SingleLabel(labels) | MultiLabel(labels):
                places = {label: place for place, label in enumerate(head.labels)}
                found += [(first + places[one.label], one.score) for one in labels if one.label in places]
    return found
