"""The distribution of what a model says: how many texts fall into each bucket.

Training writes it for the validation rows, as ``distribution.json`` of the checkpoint. A server counts the same buckets
for its callers' texts (`polyhead.answer_counter`), so that Prometheus can compare the two. It holds counts and names of
labels, and nothing of a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyhead.checkpoint_files import DISTRIBUTION, read_json
from polyhead.errors import CheckpointError, describe, shortened
from polyhead.schema import Head, HeadKind, Number, Schema
from polyhead.scripts import SCRIPTS
from polyhead.terminal import printable

# A server has a few time series per bucket, so their number is bounded.
MOST_HEADS = 50  # further heads are not counted
MOST_LABELS = 50  # per head; further labels are counted together
MOST_LABELS_OF_ALL = 500
LEAST_LABELS = 5
MOST_EDGES = 20
MOST_CHARACTERS = 80  # of a label's name

SCORE_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # each the highest score of its bucket
NEAR = 0.05  # a score is near a threshold if it is at most this far from it

# What is counted. All but the last two are counted per head.
ANSWERS, SCORES, NEAR_THRESHOLD, SCRIPT, TRUNCATED = "answers", "scores", "near_threshold", "script", "truncated"
REST, EMPTY, REJECTED = "(rest)", "(none)", "(rejected)"
NO, YES = "no", "yes"

Count = Annotated[int, Field(ge=0)]


class Bucket(NamedTuple):
    """One bucket.

    Attributes:
        of: what is counted: ANSWERS, SCORES, NEAR_THRESHOLD, SCRIPT or TRUNCATED.
        head: empty if it is about texts, not about answers.
        bucket: a label's name, REST, EMPTY or REJECTED; the highest score in it; a script; or NO or YES.
    """

    of: str
    head: str
    bucket: str


class Distribution(BaseModel):
    """How many texts fell into each bucket.

    Attributes:
        texts: how many were counted.
        labels: by head, except regressions: the labels that have a bucket of their own.
        edges: by regression: the highest value of each bucket but the last, which has no highest.
        counts: by what is counted, head and bucket.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    texts: int = Field(gt=0)
    labels: dict[str, list[str]]
    edges: dict[str, list[Number]]
    counts: dict[str, dict[str, dict[str, Count]]]

    @classmethod
    def read(cls, path: Path, schema: Schema) -> Distribution:
        """Reads ``distribution.json``.

        Raises:
            CheckpointError: its fields, heads, labels or buckets are not those of this schema.
        """
        try:
            found = cls.model_validate(read_json(path))
            found.check(schema)
        except ValueError as error:
            what = describe(error) if isinstance(error, ValidationError) else error
            raise CheckpointError(f"{path}: {what}. Remove this file; polyhead-evaluate writes another one") from error
        return found

    def write(self, folder: Path) -> None:
        """Writes ``distribution.json`` into the folder of a checkpoint."""
        (folder / DISTRIBUTION).write_text(json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n", "utf-8")

    def check(self, schema: Schema) -> None:
        """Raises ValueError if it is no distribution of this schema, or has too many buckets."""
        heads = {head.name: head for head in counted_heads(schema)}
        labelled, regressions = _labelled(heads.values()), _regressions(heads.values())
        for field, given, names in (("labels", self.labels, labelled), ("edges", self.edges, regressions)):
            if wrong := sorted(given.keys() ^ set(names)):
                raise ValueError(f"{field}: must name every counted head and no other; wrong: {shortened(wrong)}")
        for name, labels in self.labels.items():
            if unknown := sorted(set(labels) - set(heads[name].labels)):
                raise ValueError(f"labels: head {name!r} has no labels {shortened(unknown)}")
            if len(labels) > MOST_LABELS or len(set(labels)) < len(labels):
                raise ValueError(f"labels: head {name!r} must have at most {MOST_LABELS}, each once")
        for name, edges in self.edges.items():
            if len(edges) > MOST_EDGES or edges != rounded_edges(edges):
                raise ValueError(
                    f"edges: head {name!r} must have at most {MOST_EDGES}, of at most 6 digits, in ascending order"
                )
        if different := sorted(self._flat().keys() ^ set(buckets_of(schema, self.labels, self.edges))):
            first = shortened(tuple(different[0]))
            raise ValueError(f"counts: must have the buckets of these labels and edges; first wrong: {first}")

    def texts_per_bucket(self, schema: Schema) -> dict[Bucket, int]:
        """How many texts are in each bucket, in the order of `buckets_of`."""
        flat = self._flat()
        return {bucket: flat[bucket] for bucket in buckets_of(schema, self.labels, self.edges)}

    def reference(self) -> str:
        """Eight digits that tell one distribution from others."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def _flat(self) -> dict[Bucket, int]:
        return {
            Bucket(of, head, bucket): count
            for of, by_head in self.counts.items()
            for head, by_bucket in by_head.items()
            for bucket, count in by_bucket.items()
        }


def distribution_of(
    texts: int, labels: Mapping[str, Sequence[str]], edges: Mapping[str, Sequence[float]], counts: Mapping[Bucket, int]
) -> Distribution:
    """The distribution of counts per bucket."""
    nested: dict[str, dict[str, dict[str, int]]] = {}
    for (of, head, bucket), count in counts.items():
        nested.setdefault(of, {}).setdefault(head, {})[bucket] = int(count)
    return Distribution(
        texts=texts,
        labels={head: list(names) for head, names in labels.items()},
        edges={head: [float(edge) for edge in found] for head, found in edges.items()},
        counts=nested,
    )


def buckets_of(
    schema: Schema, labels: Mapping[str, Sequence[str]], edges: Mapping[str, Sequence[float]]
) -> list[Bucket]:
    """All buckets; those of one kind and head follow each other, and labels keep their order."""
    found = []
    for head in counted_heads(schema):
        if head.kind != HeadKind.REGRESSION:
            found += [Bucket(ANSWERS, head.name, name) for name in answer_buckets(head, labels[head.name], schema)]
        ends = SCORE_EDGES if head.kind != HeadKind.REGRESSION else edges[head.name]
        found += [Bucket(SCORES, head.name, f"{edge:g}") for edge in ends]
        if head.kind == HeadKind.REGRESSION:
            found.append(Bucket(SCORES, head.name, "+Inf"))
        if has_threshold(head):
            found += [Bucket(NEAR_THRESHOLD, head.name, answer) for answer in (NO, YES)]
    found += [Bucket(SCRIPT, "", script) for script in SCRIPTS]
    return [*found, *(Bucket(TRUNCATED, "", answer) for answer in (NO, YES))]


def answer_buckets(head: Head, labels: Sequence[str], schema: Schema) -> list[str]:
    """The names of a head's buckets of answers: of its `labels`, and of what they do not cover.

    Names are printable, short and unique: a label is cut, and gets its number if it would be mistaken for another one.
    """
    others = [REST] * (len(labels) < len(head.labels))
    others += [EMPTY] * (head.kind == HeadKind.MULTI_LABEL) + [REJECTED] * (head in schema.rejecting_heads)
    taken, names = {REST, EMPTY, REJECTED}, []
    for label in labels:
        name = printable(label)
        name = name if len(name) <= MOST_CHARACTERS else f"{name[:MOST_CHARACTERS]}…"
        while name in taken or (name != label and name in head.index_of):
            name = f"{name} #{head.index_of[label]}"
        taken.add(name)
        names.append(name)
    return [*names, *others]


def has_threshold(head: Head) -> bool:
    """Whether an answer of this head depends on whether scores reach a threshold."""
    return head.kind == HeadKind.MULTI_LABEL or head.reject_below is not None


def counted_heads(schema: Schema) -> Sequence[Head]:
    """The heads whose answers are counted."""
    return schema.heads[:MOST_HEADS]


def most_labels(schema: Schema) -> int:
    """How many labels per head have a bucket of their own."""
    labelled = len(_labelled(counted_heads(schema)))
    return max(LEAST_LABELS, min(MOST_LABELS, MOST_LABELS_OF_ALL // max(labelled, 1)))


def first_labels(schema: Schema) -> dict[str, list[str]]:
    """The labels to count if nothing is known about how frequent they are."""
    most = most_labels(schema)
    return {name: list(schema[name].labels[:most]) for name in _labelled(counted_heads(schema))}


def usual_edges(schema: Schema) -> dict[str, list[float]]:
    """The buckets of regressions if nothing is known about their values."""
    return {name: _usual_edges(schema[name]) for name in _regressions(counted_heads(schema))}


def _usual_edges(head: Head) -> list[float]:
    if head.y_range is not None:
        low, high = head.y_range
        edges = [low + (high - low) * tenth / 10 for tenth in range(1, 10)]
    elif head.target_scale is not None:
        center, spread = head.target_scale
        edges = [center + abs(spread) * half / 2 for half in range(-4, 5)]
    else:
        edges = [-1000.0, -100.0, -10.0, -1.0, 0.0, 1.0, 10.0, 100.0, 1000.0]
    return rounded_edges(edges)


def rounded_edges(edges: Sequence[float]) -> list[float]:
    """Different numbers of six digits, ascending: so they differ as names too."""
    return sorted({float(f"{edge:g}") + 0.0 for edge in edges})


def _labelled(heads: Iterable[Head]) -> list[str]:
    return [head.name for head in heads if head.kind != HeadKind.REGRESSION]


def _regressions(heads: Iterable[Head]) -> list[str]:
    return [head.name for head in heads if head.kind == HeadKind.REGRESSION]
