"""The heads of the served model, read from the wire's SCHEMA JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from polyhead_client.errors import BadResponseError, UnknownNameError, one_line

FLOAT32_STEP = 2.0**-23  # between neighbouring numbers of float32, relative to them


class HeadKind(StrEnum):
    """What kind of answer a head gives; the values are the wire contract's."""

    SINGLE_LABEL = "single_label"  # one of n labels
    MULTI_LABEL = "multi_label"  # any of n labels
    REGRESSION = "regression"  # a number


@dataclass(frozen=True, slots=True)
class HeadSchema:
    """One head.

    Attributes:
        name: the head's name.
        kind: what kind of answer it gives.
        labels: in the order of their score columns; empty for a regression.
        thresholds: multi_label only, one per label: the score from which a label is part of the answer.
        reject_below: single_label only: an answer with a score below this is no label; None: the head rejects nothing.
        reject_by: what is compared with it: the ``score`` of the best label, or the answer's ``certainty``.
        parent: the head one level up in a taxonomy.
        parent_of: for each label, the label of the parent head above it.
        target_scale: regression only: center and spread of the numbers that it was trained on; None if unknown.
    """

    name: str
    kind: HeadKind
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] | None = None
    parent: str | None = None
    parent_of: Mapping[str, str] | None = None
    target_scale: tuple[float, float] | None = None
    reject_below: float | None = None
    reject_by: str = "score"

    @property
    def width(self) -> int:
        """How many score columns belong to this head."""
        return 1 if self.kind == HeadKind.REGRESSION else len(self.labels)

    def allowed(self, score: float, tolerance: float) -> float:
        """How far a score may be from `score`, its float32 value.

        Args:
            tolerance: `ModelSchema.tolerance`. For a regression it is a share of the spread of the training targets or,
                if that is larger, of the value's distance from their center. One step of float32 is always allowed.
        """
        if self.kind != HeadKind.REGRESSION:
            return tolerance
        center, spread = self.target_scale or (0.0, 1.0)
        return tolerance * max(spread, abs(score - center)) + abs(score) * FLOAT32_STEP


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """All heads, in the order of their score columns, and how the server computes.

    Attributes:
        max_length: in tokens.
        precision: ``fp32``, ``bf16`` or ``int8``; None if the server does not state it.
        tolerance: how far a score may be from its float32 value (`HeadSchema.allowed`); None if the server does not
            state it.
        text_template: how the server makes a text of fields; None if the model takes plain texts only.
        fields: the names of these fields.
    """

    max_length: int
    heads: tuple[HeadSchema, ...]
    precision: str | None = None
    tolerance: float | None = None
    text_template: str | None = None
    fields: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many scores a text has."""
        return sum(head.width for head in self.heads)

    @property
    def columns(self) -> dict[str, slice]:
        """The score columns of each head, by its name."""
        columns, start = {}, 0
        for head in self.heads:
            columns[head.name] = slice(start, start + head.width)
            start += head.width
        return columns

    def __getitem__(self, head: str) -> HeadSchema:
        for one in self.heads:
            if one.name == head:
                return one
        raise UnknownNameError(f"no head {head!r}; the heads are {[one.name for one in self.heads]}")

    def column(self, head: str, label: str | None = None) -> int:
        """The column of a label in a row of scores; a regression has one value and no label.

        Raises:
            UnknownNameError: there is no such head or label; the message lists those that exist.
        """
        labels = self[head].labels or (None,)
        if label not in labels:
            raise UnknownNameError(f"head {head!r} has no label {label!r}; its labels are {list(self[head].labels)}")
        start: int = self.columns[head].start
        return start + labels.index(label)

    def column_names(self) -> list[str]:
        """One ``head/label`` per score column; ``head/value`` for a regression."""
        return [f"{head.name}/{label}" for head in self.heads for label in (head.labels or ("value",))]

    @classmethod
    def from_json(cls, data: bytes | str) -> ModelSchema:
        """Reads one element of the SCHEMA output; fields that this client does not need are ignored.

        Raises:
            BadResponseError: it breaks the wire contract.
        """
        try:
            fields: Any = json.loads(data)
            heads = tuple(_read_head(head) for head in fields["heads"])
            tolerance = fields.get("tolerance")
            return cls(
                int(fields["max_length"]),
                heads,
                _text(fields.get("precision"), "precision"),
                None if tolerance is None else _number(tolerance),
                _text(fields.get("text_template"), "text_template"),
                tuple(str(name) for name in fields.get("fields") or ()),
            )
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise BadResponseError(f"SCHEMA breaks the wire contract: {one_line(repr(error))}") from error


def _read_head(head: Any) -> HeadSchema:
    kind, labels, thresholds = head["kind"], tuple(head.get("labels") or ()), head.get("thresholds")
    if kind not in list(HeadKind):
        raise ValueError(f"head {head['name']!r}: kind must be one of {', '.join(HeadKind)}, got {kind!r}")
    parents = head.get("parent_of") or {}
    if not all(isinstance(name, str) for name in (head["name"], *labels, *parents, *parents.values())):
        raise ValueError(f"head {head['name']!r}: the names of heads and labels must be texts")
    if kind == HeadKind.MULTI_LABEL and len(thresholds or ()) != len(labels):
        raise ValueError(f"head {head['name']!r}: thresholds must be one per label")
    scale, reject_below = head.get("target_scale"), head.get("reject_below")
    return HeadSchema(
        name=head["name"],
        kind=HeadKind(kind),
        labels=labels,
        thresholds=None if thresholds is None else tuple(map(_number, thresholds)),
        parent=_text(head.get("parent"), "parent"),
        parent_of=head.get("parent_of"),
        target_scale=None if scale is None else (_number(scale[0]), _number(scale[1])),
        reject_below=None if reject_below is None else _number(reject_below),
        reject_by=str(head.get("reject_by", "score")),
    )


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{name} must be a text or null, got {type(value).__name__}")


def _number(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{number} is no finite number")
    return number
