"""What a model answers at other thresholds, computed here from one text's scores, and where two answers differ.

Without other thresholds it is what the server answers: `polyhead.decode` is the original of these rules. A taxonomy's
most probable path does not depend on thresholds, so it is taken from the server's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead_client.errors import BadResponseError
from polyhead_client.prediction import HeadPrediction, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.schema import HeadKind, HeadSchema, ModelSchema

SAME = 1e-4  # how far two numbers may be apart and still be the same if the servers state no tolerance

Bounds = Mapping[str, float]  # by head: the threshold of all its labels, or the score below which it has no label


@dataclass(frozen=True, slots=True)
class Bar:
    """The score of one label.

    Attributes:
        threshold: multi_label only: the score from which the label is part of the answer.
        chosen: whether the label is (part of) the answer.
    """

    label: str
    score: float
    threshold: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class DecidedHead:
    """What one head answers.

    Attributes:
        bars: one per label, the highest score first; empty for a regression.
        value: a regression's number.
        best: single_label only: the label that is answered unless it is rejected.
        confidence: single_label only: what is compared with `bound`.
        bound: single_label only: the answer is no label if `confidence` is below; None rejects nothing.
        above: the head above in the taxonomy that is rejected, and so this one too.
        rejected: whether the answer of a single_label head is no label.
        moved: whether `bound`, or the thresholds, are not the model's own.
    """

    head: HeadSchema
    bars: tuple[Bar, ...] = ()
    value: float | None = None
    best: str | None = None
    confidence: float | None = None
    bound: float | None = None
    above: str | None = None
    rejected: bool = False
    moved: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the answer."""
        return tuple(bar.label for bar in self.bars if bar.chosen)


def certainty(scores: NDArray[np.floating]) -> float:
    """One over the number of labels that the scores are spread over, as `polyhead.decode.certainty` has it."""
    roots = float(np.sqrt(np.maximum(scores, 0).astype(np.float64)).sum())
    return round(1 / max(roots, 1.0) ** 2, 6)


def decide(
    schema: ModelSchema, prediction: Prediction, scores: NDArray[np.float32], bounds: Bounds
) -> dict[str, DecidedHead]:
    """The answer of each head.

    Args:
        prediction: the server's answer.
        scores: of all heads, ``(schema.width,)``.
        bounds: by head, what replaces the model's own thresholds or ``reject_below``.

    Raises:
        BadResponseError: schema, answer and scores are not of the same model.
    """
    if len(scores) != schema.width or prediction.heads.keys() != {head.name for head in schema.heads}:
        raise BadResponseError("schema, answer and scores do not fit together; was the model replaced? Ask again")
    decided: dict[str, DecidedHead] = {}
    for head in _parents_first(schema):
        own = scores[schema.columns[head.name]]
        match head.kind:
            case HeadKind.REGRESSION:
                decided[head.name] = DecidedHead(head, value=float(own[0]))
            case HeadKind.MULTI_LABEL:
                decided[head.name] = _any_of(head, own, bounds.get(head.name))
            case HeadKind.SINGLE_LABEL:
                above = None if head.parent is None else decided.get(head.parent)
                rejecting = head.parent if above is not None and above.rejected else None
                decided[head.name] = _one_of(head, prediction, own, bounds.get(head.name), rejecting)
    return {head.name: decided[head.name] for head in schema.heads}


def _parents_first(schema: ModelSchema) -> Iterator[HeadSchema]:
    waiting, known = list(schema.heads), {head.name for head in schema.heads}
    done: set[str] = set()
    while waiting:
        ready = [head for head in waiting if head.parent is None or head.parent in done or head.parent not in known]
        if not ready:
            raise BadResponseError(f"the heads {[head.name for head in waiting]} are above each other")
        yield from ready
        done |= {head.name for head in ready}
        waiting = [head for head in waiting if head.name not in done]


def _any_of(head: HeadSchema, scores: NDArray[np.float32], moved: float | None) -> DecidedHead:
    thresholds = head.thresholds if moved is None else (moved,) * len(head.labels)
    bars = [
        Bar(label, float(score), threshold, float(score) >= threshold)
        for label, score, threshold in zip(head.labels, scores, thresholds or (), strict=True)
    ]
    return DecidedHead(head, tuple(sorted(bars, key=lambda bar: -bar.score)), moved=moved is not None)


def _one_of(
    head: HeadSchema, prediction: Prediction, scores: NDArray[np.float32], moved: float | None, above: str | None
) -> DecidedHead:
    answer = prediction[head.name]
    if not isinstance(answer, SingleLabel) or answer.top[0].label not in head.labels:
        raise BadResponseError(f"the answer of head {head.name!r} is not of its schema; was the model replaced?")
    best = answer.top[0].label
    if head.reject_by == "score":
        confidence = float(scores[head.labels.index(best)])
    else:
        confidence = certainty(scores) if answer.certainty is None else answer.certainty
    bound = head.reject_below if moved is None else moved
    is_rejected = above is not None or (bound is not None and confidence < bound)
    bars = [
        Bar(label, float(score), chosen=label == best and not is_rejected)
        for label, score in zip(head.labels, scores, strict=True)
    ]
    # In a taxonomy another label may have a higher score than the one on the most probable path.
    bars.sort(key=lambda bar: (bar.label != best, -bar.score))
    return DecidedHead(
        head,
        tuple(bars),
        best=best,
        confidence=confidence,
        bound=bound,
        above=above,
        rejected=is_rejected,
        moved=moved is not None,
    )


def paths(schema: ModelSchema, decided: Mapping[str, DecidedHead]) -> list[list[tuple[str, str | None]]]:
    """The path of each taxonomy from its root to each lowest head: head and label; None from a rejected level on."""
    parents = {head.parent for head in schema.heads if head.parent is not None}
    by_name = {head.name: head for head in schema.heads}
    found = []
    for leaf in schema.heads:
        if leaf.parent is None or leaf.name in parents:
            continue
        heads = [leaf]
        while heads[0].parent in by_name:
            heads.insert(0, by_name[heads[0].parent])
        levels = [decided[head.name] for head in heads]
        found.append([(level.head.name, None if level.rejected else level.best) for level in levels])
    return found


def difference(left: DecidedHead | None, right: DecidedHead | None, tolerance: float) -> str | None:
    """In words, how the answers of a head differ; None if they are the same.

    Args:
        tolerance: how far a score of the two may be apart: `ModelSchema.tolerance` of the coarser one.
    """
    if left is None or right is None:
        return None if left is right else f"only the {'first' if right is None else 'second'} model has this head"
    if left.head.kind != right.head.kind:
        return f"{left.head.kind.value} → {right.head.kind.value}"
    match left.head.kind:
        case HeadKind.REGRESSION:
            one, other = left.value or 0.0, right.value or 0.0
            apart = abs(one - other) > left.head.allowed(one, tolerance) + right.head.allowed(other, tolerance)
            return f"{one:.4g} → {other:.4g} ({other - one:+.4g})" if apart else None
        case HeadKind.SINGLE_LABEL:
            labels = [in_words(left), in_words(right)]
            return None if left.labels == right.labels else " → ".join(labels)
        case HeadKind.MULTI_LABEL:
            said = [
                f"only the {name} answers {', '.join(only)}"
                for name, one, other in (("first", left, right), ("second", right, left))
                if (only := [label for label in one.labels if label not in other.labels])
            ]
            return "; ".join(said) or None


def in_words(decided: DecidedHead) -> str:
    """The answer of a head: its label or labels, or its number."""
    if decided.value is not None:
        return f"{decided.value:.4g}"
    if decided.labels:
        return ", ".join(decided.labels)
    return "no label"


def answered(head: HeadSchema, answer: HeadPrediction) -> DecidedHead:
    """The answer of the server itself, with bars for the answered labels only."""
    match answer:
        case Regression(value):
            return DecidedHead(head, value=value)
        case SingleLabel(top, rejected, confidence):
            bars = tuple(Bar(one.label, one.score, chosen=one is top[0] and not rejected) for one in top)
            return DecidedHead(head, bars, best=top[0].label, confidence=confidence, rejected=bool(rejected))
        case MultiLabel(labels):
            return DecidedHead(head, tuple(Bar(one.label, one.score, one.threshold, True) for one in labels))
