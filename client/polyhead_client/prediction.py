"""The answer to one text: a `Prediction` with one answer per head, read from the wire's PREDICTION."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyhead_client.errors import BadResponseError, UnknownNameError, one_line
from polyhead_client.schema import HeadKind

_NUMBERS = frozenset({int, float})  # a bool is an int in Python, but not on the wire


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A chosen label, its calibrated score in [0, 1] and the threshold it reached (None for single_label heads)."""

    label: str
    score: float
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class SingleLabel:
    """One of n labels, or none of them.

    Attributes:
        top: the best label or, with ``top_k``, the best ones, best first; never empty, also if the answer is rejected.
        rejected: whether the answer is no label, because the best label's score is below the head's ``reject_below``,
            or because the level above in a taxonomy is rejected. None if neither head nor request has a
            ``reject_below``; the answer is then the best label.
        certainty: one over the number of labels that the scores are spread over; None if the head rejects by score.
    """

    top: tuple[LabelScore, ...]
    rejected: bool | None = None
    certainty: float | None = None

    @property
    def label(self) -> str | None:
        """The best label; None if the answer is rejected. ``top[0].label`` is always the best label."""
        return None if self.rejected else self.top[0].label

    @property
    def score(self) -> float:
        """The best label's score, also if the answer is rejected."""
        return self.top[0].score


@dataclass(frozen=True, slots=True)
class MultiLabel:
    """Any of n labels: those whose score reached their threshold, best first; may be empty."""

    labels: tuple[LabelScore, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The labels without their scores."""
        return tuple(chosen.label for chosen in self.labels)


@dataclass(frozen=True, slots=True)
class Regression:
    """A number."""

    value: float


HeadPrediction = SingleLabel | MultiLabel | Regression


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text, or the reason why it has none.

    Attributes:
        heads: by head name, in the schema's order; empty if there is an error.
        token_count: how many tokens the model read; 0 if there is an error.
        truncated: whether the text was longer than the model reads.
        error: why this text has no answer; None if it has one.
    """

    heads: Mapping[str, HeadPrediction] = field(default_factory=dict)
    token_count: int = 0
    truncated: bool = False
    error: str | None = None

    def __getitem__(self, head: str) -> HeadPrediction:
        if head not in self.heads:
            why = f"the heads are {list(self.heads)}"
            if self.error is not None:
                why = f"the text has no answer: {self.error}"
            raise UnknownNameError(f"no head {head!r}; {why}")
        return self.heads[head]

    @classmethod
    def from_json(cls, data: bytes | str) -> Prediction:
        """Reads one element of the PREDICTION output; unknown fields of a newer server are ignored.

        Raises:
            BadResponseError: it breaks the wire contract; the message names the place.
        """
        try:
            # Given bytes, json.loads first guesses their encoding, which costs time over millions of texts.
            fields = json.loads(data if isinstance(data, str) else data.decode())
        except (ValueError, RecursionError) as error:
            raise BadResponseError(f"PREDICTION is not JSON: {one_line(str(error))}") from error
        if not isinstance(fields, dict):
            raise BadResponseError(f"PREDICTION must be an object, got {type(fields).__name__}")
        if "error" in fields:
            return cls(error=_take(fields, "error", str, "PREDICTION"))
        heads = _take(fields, "heads", dict, "PREDICTION")
        return cls(
            heads={name: _read_head(head, f"PREDICTION.heads.{name}") for name, head in heads.items()},
            token_count=_take(fields, "token_count", int, "PREDICTION"),
            truncated=_take(fields, "truncated", bool, "PREDICTION"),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`, as an object ready for ``json.dumps``."""
        if self.error is not None:
            return {"error": self.error}
        heads = {name: _write_head(head) for name, head in self.heads.items()}
        return {"heads": heads, "token_count": self.token_count, "truncated": self.truncated}


def _read_head(head: Any, place: str) -> HeadPrediction:
    if not isinstance(head, dict):
        raise BadResponseError(f"{place} must be an object, got {type(head).__name__}")
    match head.get("kind"):
        case HeadKind.SINGLE_LABEL:
            top = _read_labels(head, place, with_thresholds=False)
            if not top:
                raise BadResponseError(f"{place}.labels: a {HeadKind.SINGLE_LABEL} head names at least one, got none")
            certainty = None
            if "certainty" in head:
                (certainty,) = _numbers([head["certainty"]], f"{place}.certainty")
            return SingleLabel(top, _read_rejected(head, top[0].label, place), certainty)
        case HeadKind.MULTI_LABEL:
            return MultiLabel(_read_labels(head, place, with_thresholds=True))
        case HeadKind.REGRESSION:
            return Regression(_numbers([head.get("value")], f"{place}.value")[0])
        case kind:
            kinds = ", ".join(HeadKind)
            raise BadResponseError(f"{place}.kind must be one of {kinds}, got {kind!r}; is this client too old?")


def _read_labels(head: dict[str, Any], place: str, *, with_thresholds: bool) -> tuple[LabelScore, ...]:
    labels = _take(head, "labels", list, place)
    scores = _take(head, "scores", list, place)
    thresholds = _take(head, "thresholds", list, place) if with_thresholds else [None] * len(labels)
    if not len(labels) == len(scores) == len(thresholds):
        raise BadResponseError(
            f"{place}: labels, scores and thresholds differ in length: {len(labels)}, {len(scores)}, {len(thresholds)}"
        )
    if not all(isinstance(label, str) for label in labels):
        raise BadResponseError(f"{place}.labels must be strings, got {one_line(repr(labels))}")
    numbers = _numbers(scores, f"{place}.scores")
    if not with_thresholds:
        return tuple(map(LabelScore, labels, numbers))
    return tuple(map(LabelScore, labels, numbers, _numbers(thresholds, f"{place}.thresholds")))


def _read_rejected(head: dict[str, Any], best: str, place: str) -> bool | None:
    if "label" not in head:
        return None
    if head["label"] not in (None, best):
        found = one_line(repr(head["label"]))
        raise BadResponseError(f"{place}.label must be the first of labels or null, got {found}")
    return head["label"] is None


def _write_head(head: HeadPrediction) -> dict[str, Any]:
    match head:
        case SingleLabel(top, rejected, certainty) as answer:
            return {
                "kind": HeadKind.SINGLE_LABEL.value,
                **({} if rejected is None else {"label": answer.label}),
                "labels": [one.label for one in top],
                "scores": [one.score for one in top],
                **({} if certainty is None else {"certainty": certainty}),
            }
        case MultiLabel(labels):
            return {
                "kind": HeadKind.MULTI_LABEL.value,
                "labels": [one.label for one in labels],
                "scores": [one.score for one in labels],
                "thresholds": [one.threshold for one in labels],
            }
        case Regression(value):
            return {"kind": HeadKind.REGRESSION.value, "value": value}


def _take(fields: dict[str, Any], name: str, kind: type, place: str) -> Any:
    if name not in fields:
        raise BadResponseError(f"{place}: missing field {name!r}")
    value = fields[name]
    if type(value) is not kind:  # isinstance would accept a bool as an int
        raise BadResponseError(f"{place}.{name} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _numbers(values: list[Any], place: str) -> list[float]:
    try:
        if _NUMBERS.issuperset(map(type, values)) and all(map(math.isfinite, values)):
            return list(map(float, values))
    except OverflowError:  # an int that is larger than every float
        pass
    raise BadResponseError(f"{place} must hold finite numbers, got {one_line(repr(values))}")
