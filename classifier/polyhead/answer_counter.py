"""Counts what a model says into the buckets of `polyhead.distribution`, for many texts at once.

What counts are the model's own thresholds and bounds: the options of a request change an answer, not the distribution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.decode import Scores, are_answers, best_labels, confidence_of, over_threshold, rejected
from polyhead.distribution import (
    ANSWERS,
    EMPTY,
    NEAR,
    NEAR_THRESHOLD,
    REJECTED,
    REST,
    SCORE_EDGES,
    SCORES,
    SCRIPT,
    TRUNCATED,
    Distribution,
    answer_buckets,
    buckets_of,
    counted_heads,
    first_labels,
    usual_edges,
)  # fmt: skip
from polyhead.schema import Head, HeadKind, Schema
from polyhead.scripts import SCRIPTS

Counts = NDArray[np.int64]
_SCRIPT_INDEX = {script: index for index, script in enumerate(SCRIPTS)}


@dataclass(frozen=True)
class _CountedHead:
    """A head, and where its buckets begin.

    Attributes:
        place_of: per label, the place of its bucket among the head's buckets of answers.
        edges: float32, as scores are.
        answers, scores, near: the first bucket of the kind.
    """

    head: Head
    columns: slice
    place_of: NDArray[np.int64]
    names: list[str]
    edges: NDArray[np.float32]
    answers: int
    scores: int
    near: int


class AnswerCounter:
    """Counts the answers of one model.

    Args:
        schema: the model's.
        labels, edges: as in `Distribution`; by default those that `Distribution` does not need to know.

    Attributes:
        buckets: all buckets, in the order of the counts.
    """

    def __init__(
        self,
        schema: Schema,
        labels: dict[str, list[str]] | None = None,
        edges: dict[str, list[float]] | None = None,
    ) -> None:
        self.schema = schema
        self.labels = first_labels(schema) if labels is None else labels
        self.edges = usual_edges(schema) if edges is None else edges
        self.buckets = buckets_of(schema, self.labels, self.edges)
        first: dict[tuple[str, str], int] = {}
        for place, bucket in enumerate(self.buckets):
            first.setdefault((bucket.of, bucket.head), place)
        self._heads = [self._place(head, first) for head in counted_heads(schema)]
        self._scripts = first[SCRIPT, ""]
        self._truncated = first[TRUNCATED, ""]

    @classmethod
    def of(cls, schema: Schema, distribution: Distribution | None) -> AnswerCounter:
        """Counts into the same buckets as a distribution."""
        return cls(schema) if distribution is None else cls(schema, distribution.labels, distribution.edges)

    def count(self, scores: Scores, truncated: Sequence[bool], scripts: Sequence[str]) -> Counts:
        """How many of these texts fall into each bucket. Texts without an answer do not count.

        Args:
            scores: calibrated, ``(n, schema.width)``.
            truncated, scripts: per text; see `polyhead.scripts`.
        """
        counts = np.zeros(len(self.buckets), dtype=np.int64)
        have = are_answers(scores)
        if not have.all():
            scores = scores[have]
        if not len(scores):
            return counts
        for script, texts in Counter(compress(scripts, have)).items():
            counts[self._scripts + _SCRIPT_INDEX[script]] = texts
        cut = sum(compress(truncated, have))
        counts[self._truncated : self._truncated + 2] = len(scores) - cut, cut
        answered = best_labels(scores, self.schema)
        confidence = confidence_of(answered, scores, self.schema) if self.schema.rejecting_heads else {}
        are_rejected = rejected(confidence, self.schema)
        for counted in self._heads:
            self._count_head(counts, counted, scores, answered, confidence, are_rejected)
        return counts

    def _count_head(
        self,
        counts: Counts,
        counted: _CountedHead,
        scores: Scores,
        answered: dict[str, NDArray[np.intp]],
        confidence: dict[str, NDArray[Any]],
        are_rejected: dict[str, NDArray[np.bool_]],
    ) -> None:
        head, given = counted.head, scores[:, counted.columns]
        match head.kind:
            case HeadKind.REGRESSION:
                top = given[:, 0]
            case HeadKind.SINGLE_LABEL:
                best = answered[head.name]
                top = given[np.arange(len(given)), best]
                places = counted.place_of[best]
                if head.name in are_rejected:
                    places = np.where(are_rejected[head.name], counted.names.index(REJECTED), places)
                self._add(counts, counted.answers, places)
                if head.reject_below is not None:
                    distance = np.abs(confidence[head.name] - head.reject_below)
                    self._add_near(counts, counted, distance[:, None])
            case HeadKind.MULTI_LABEL:
                top = given.max(axis=1)
                assert head.thresholds is not None  # the schema gives every multi_label head its thresholds
                over = over_threshold(given, head.thresholds)
                counts[counted.answers : counted.answers + len(counted.names)] = np.bincount(
                    counted.place_of, weights=over.sum(axis=0), minlength=len(counted.names)
                )
                counts[counted.answers + counted.names.index(EMPTY)] = len(over) - over.any(axis=1).sum()
                distance = np.abs(given - np.asarray(head.thresholds, dtype=np.float32))
                self._add_near(counts, counted, distance)
        self._add(counts, counted.scores, np.searchsorted(counted.edges, top))

    @staticmethod
    def _add(counts: Counts, first: int, places: NDArray[np.int64]) -> None:
        found = np.bincount(places)
        counts[first : first + len(found)] += found

    @staticmethod
    def _add_near(counts: Counts, counted: _CountedHead, distance: NDArray[Any]) -> None:
        near = int((distance <= NEAR).any(axis=1).sum())
        counts[counted.near : counted.near + 2] = len(distance) - near, near

    def _place(self, head: Head, first: dict[tuple[str, str], int]) -> _CountedHead:
        is_regression = head.kind == HeadKind.REGRESSION
        labels = [] if is_regression else self.labels[head.name]
        names = [] if is_regression else answer_buckets(head, labels, self.schema)
        place_of = np.full(len(head.labels), names.index(REST) if REST in names else 0, dtype=np.int64)
        for place, label in enumerate(labels):
            place_of[head.index_of[label]] = place
        return _CountedHead(
            head,
            self.schema.columns[head.name],
            place_of,
            names,
            np.array(self.edges[head.name] if is_regression else SCORE_EDGES, dtype=np.float32),
            first.get((ANSWERS, head.name), 0),
            first[SCORES, head.name],
            first.get((NEAR_THRESHOLD, head.name), 0),
        )
