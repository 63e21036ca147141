"""The schema: the heads of a model and their labels. A text's scores are the scores of all heads, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polyhead.errors import SchemaError, describe, shortened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The lowest float32. On the wire it stands in SCORES for a text without an answer, because JSON has no NaN.
NO_SCORE = -3.4028234663852886e38

MOST_HEADS = 1000
MOST_LEVELS = 32  # of a taxonomy

Architecture = Literal["base", "hidden_state_concat"]  # here, because configs are read without torch
RejectBy = Literal["score", "certainty"]
# Servers and checkpoints of older releases have heads without these fields.
MAY_LACK = frozenset({"target_scale", "reject_below", "reject_by"})

# JSON has true beside 1 and "1" beside 1; only a number is one here.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class HeadKind(StrEnum):
    """What a head answers: one of n labels, any of n labels, or a number. Checkpoints and answers hold these values."""

    SINGLE_LABEL = "single_label"
    MULTI_LABEL = "multi_label"
    REGRESSION = "regression"


class Head(BaseModel):
    """One thing that the model says about a text.

    Attributes:
        name: unique in the schema; without ``/``, which separates head and label in column names.
        kind: ``single_label`` (one of n), ``multi_label`` (any of n) or ``regression`` (a number).
        labels: in index order; empty for a regression.
        weight: factor of the head's loss in training.
        thresholds: multi_label only, one per label: the answer includes a label if its score is at least this.
        reject_below: single_label only: the answer is no label if its score is below this, or if `parent` rejects.
            None: the head itself rejects nothing.
        reject_by: what `reject_below` is compared with: the answered label's score, or `polyhead.decode.certainty`.
        temperature: logits are divided by it before softmax or sigmoid (Guo et al. 2017, arXiv:1706.04599).
        target_scale: regression only: center and spread of the numbers that it was trained on. The answer is
            ``center + spread * logit``. None, in imported models and formats 1 and 2: the answer is the logit.
        y_range: regression only: the lowest and highest answer. With `target_scale` the answer is clipped to it,
            otherwise a sigmoid maps the logit into it.
        parent: the single_label head one level up in a taxonomy.
        parent_of: for each label of this head, the label of `parent` that it belongs to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, pattern=r"^[^/\n\r]+$")
    kind: HeadKind
    labels: tuple[str, ...] = ()
    weight: Number = Field(default=1.0, ge=0)
    thresholds: tuple[Number, ...] | None = None
    reject_below: Annotated[Number, Field(ge=0, le=1)] | None = None
    reject_by: RejectBy = "score"
    temperature: Number = Field(default=1.0, gt=0)
    target_scale: tuple[Number, Number] | None = None
    y_range: tuple[Number, Number] | None = None
    parent: str | None = None
    parent_of: dict[str, str] | None = None

    @model_validator(mode="after")
    def _check(self) -> Head:
        least = {HeadKind.SINGLE_LABEL: 2, HeadKind.MULTI_LABEL: 1, HeadKind.REGRESSION: 0}[self.kind]
        if self.kind == HeadKind.REGRESSION and self.labels:
            raise ValueError(f"head {self.name!r}: a regression has no labels, got {len(self.labels)}")
        if len(self.labels) < least:
            raise ValueError(
                f"head {self.name!r}: a {self.kind} head needs at least {least} labels, got {list(self.labels)}"
            )
        if twice := _repeated(self.labels):
            raise ValueError(f"head {self.name!r}: labels must be unique, these are repeated: {shortened(twice)}")
        broken = [label for label in self.labels if not label or "\n" in label or "\r" in label]
        if broken:
            raise ValueError(f"head {self.name!r}: labels must be non-empty single lines, got {shortened(broken)}")
        if broken := [text for text in (self.name, *self.labels) if not is_unicode(text)]:
            raise ValueError(f"head {self.name!r}: name and labels must be valid Unicode, got {shortened(broken)}")
        if self.kind == HeadKind.MULTI_LABEL:
            if self.thresholds is None:
                object.__setattr__(self, "thresholds", (0.5,) * len(self.labels))
            elif len(self.thresholds) != len(self.labels):
                raise ValueError(
                    f"head {self.name!r}: needs a threshold per label ({len(self.labels)}), got {len(self.thresholds)}"
                )
            elif not all(0 <= threshold <= 1 for threshold in self.thresholds):
                wrong = [threshold for threshold in self.thresholds if not 0 <= threshold <= 1]
                raise ValueError(f"head {self.name!r}: thresholds must lie in [0, 1], got {shortened(wrong)}")
        elif self.thresholds is not None:
            raise ValueError(f"head {self.name!r}: only multi_label heads have thresholds")
        if self.reject_below is not None and self.kind != HeadKind.SINGLE_LABEL:
            raise ValueError(f"head {self.name!r}: only single_label heads have a reject_below")
        if self.reject_by != "score" and self.kind != HeadKind.SINGLE_LABEL:
            raise ValueError(f"head {self.name!r}: only single_label heads have a reject_by")
        if self.target_scale is not None:
            if self.kind != HeadKind.REGRESSION:
                raise ValueError(f"head {self.name!r}: only regression heads have a target_scale")
            center, spread = self.target_scale
            if not (NO_SCORE < center < -NO_SCORE and 0 < spread < -NO_SCORE):
                raise ValueError(
                    f"head {self.name!r}: target_scale must be center and spread, numbers of float32 and spread above "
                    f"0, got {list(self.target_scale)}"
                )
        if self.y_range is not None:
            if self.kind != HeadKind.REGRESSION:
                raise ValueError(f"head {self.name!r}: only regression heads have a y_range")
            lowest, highest = self.y_range
            if not NO_SCORE < lowest < highest < -NO_SCORE:
                raise ValueError(
                    f"head {self.name!r}: y_range must be two numbers of float32, lower first, got {list(self.y_range)}"
                )
        if (self.parent is None) != (self.parent_of is None):
            raise ValueError(f"head {self.name!r}: give both parent and parent_of, or neither")
        if self.parent is not None and self.kind != HeadKind.SINGLE_LABEL:
            raise ValueError(f"head {self.name!r}: only a single_label head can have a parent, not a {self.kind} head")
        return self

    @property
    def width(self) -> int:
        """Number of logits, and of scores, of this head."""
        return 1 if self.kind == HeadKind.REGRESSION else len(self.labels)

    @property
    def label_width(self) -> int:
        """Columns of this head in a matrix of true labels: one per label (0 or 1) for multi_label, else one."""
        return len(self.labels) if self.kind == HeadKind.MULTI_LABEL else 1

    @cached_property
    def index_of(self) -> dict[str, int]:
        """The index of each label."""
        return {label: index for index, label in enumerate(self.labels)}


class ChildOrder(NamedTuple):
    """The labels of a head with a parent.

    Attributes:
        labels: their indices, those below the parent's first label first.
        starts: where in `labels` those below each label of the parent begin.
        parents: for each label, the index of the parent's label.
    """

    labels: NDArray[np.intp]
    starts: NDArray[np.intp]
    parents: NDArray[np.intp]


class Schema:
    """All heads of a model, in the order of their scores.

    Raises:
        SchemaError: there are no heads, two share a name, or a taxonomy names a head or label that does not exist.
    """

    def __init__(self, heads: tuple[Head, ...] | list[Head]) -> None:
        self.heads = tuple(heads)
        if not self.heads:
            raise SchemaError("heads: a model needs at least one head")
        if twice := _repeated(head.name for head in self.heads):
            raise SchemaError(f"heads: names must be unique, these are repeated: {shortened(twice)}")
        self._by_name = {head.name: head for head in self.heads}
        for head in self.heads:
            self._check_parent(head)

    @classmethod
    def from_json(cls, heads: Any, may_lack: Set[str] = frozenset()) -> Schema:
        """Builds the schema from a checkpoint's ``heads``.

        Args:
            may_lack: fields that a head need not have; they get their defaults.

        Raises:
            SchemaError: an unknown or missing field.
        """
        if not isinstance(heads, list):
            raise SchemaError(f"heads: must be a list of tables, got {type(heads).__name__}")
        if len(heads) > MOST_HEADS:
            raise SchemaError(f"heads: a model has at most {MOST_HEADS} heads, got {len(heads)}")
        return cls([head_from_json(head, f"heads.{position}", may_lack) for position, head in enumerate(heads)])

    def to_json(self) -> list[dict[str, Any]]:
        """The inverse of `from_json`."""
        return [head.model_dump(mode="json") for head in self.heads]

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.heads == other.heads

    def __getitem__(self, name: str) -> Head:
        return self._by_name[name]

    @property
    def width(self) -> int:
        """Number of scores per text."""
        return sum(head.width for head in self.heads)

    @property
    def label_width(self) -> int:
        """Number of columns in a matrix of true labels."""
        return sum(head.label_width for head in self.heads)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """For each head's name, the columns of its logits and scores."""
        return _columns({head.name: head.width for head in self.heads})

    @cached_property
    def label_columns(self) -> dict[str, slice]:
        """For each head's name, its columns in a matrix of true labels."""
        return _columns({head.name: head.label_width for head in self.heads})

    def column_names(self) -> list[str]:
        """One ``head/label`` per score, ``head/value`` for a regression: the lines of ``labels.txt``."""
        return [f"{head.name}/{label}" for head in self.heads for label in (head.labels or ("value",))]

    def children(self, parent: str | None) -> list[Head]:
        """The heads with this parent; None gives the heads without a parent."""
        return self.child_heads[parent]

    @cached_property
    def child_heads(self) -> dict[str | None, list[Head]]:
        """`children` of each head and of None."""
        found: dict[str | None, list[Head]] = {None: []} | {head.name: [] for head in self.heads}
        for head in self.heads:
            found[head.parent].append(head)
        return found

    @cached_property
    def single_label_heads(self) -> list[Head]:
        """The single_label heads, each after its parent."""
        found: list[Head] = []

        def add(heads: list[Head]) -> None:
            for head in heads:
                if head.kind == HeadKind.SINGLE_LABEL:
                    found.append(head)
                    add(self.children(head.name))

        add(self.children(None))
        return found

    @cached_property
    def rejecting_heads(self) -> list[Head]:
        """The heads with a `Head.reject_below`, and all heads below them."""
        found: dict[str, Head] = {}
        for head in self.single_label_heads:
            if head.reject_below is not None or head.parent in found:
                found[head.name] = head
        return list(found.values())

    @cached_property
    def child_labels(self) -> dict[str, list[list[int]]]:
        """For each head with a parent: per label of the parent, in its order, the indices of the labels below it."""
        found = {}
        for head in self.heads:
            if head.parent is not None:
                parent = self[head.parent]
                below: list[list[int]] = [[] for _ in parent.labels]
                for index, label in enumerate(head.labels):
                    below[parent.index_of[(head.parent_of or {})[label]]].append(index)
                found[head.name] = below
        return found

    @cached_property
    def child_order(self) -> dict[str, ChildOrder]:
        """`child_labels` as arrays."""
        import numpy as np  # here, because commands that only read a schema should not wait for it

        found = {}
        for name, below in self.child_labels.items():
            counts = [len(indices) for indices in below]
            labels = np.array([index for indices in below for index in indices], dtype=np.intp)
            parents = np.empty(len(labels), dtype=np.intp)
            parents[labels] = np.repeat(np.arange(len(counts)), counts)
            found[name] = ChildOrder(labels, np.cumsum([0, *counts[:-1]]), parents)
        return found

    def _check_parent(self, head: Head) -> None:
        if head.parent is None:
            return
        parent = self._by_name.get(head.parent)
        if parent is None or parent is head or parent.kind != HeadKind.SINGLE_LABEL:
            allowed = sorted(
                other.name for other in self.heads if other.kind == HeadKind.SINGLE_LABEL and other is not head
            )
            raise SchemaError(
                f"head {head.name!r}: parent {head.parent!r} must be one of the single_label heads {shortened(allowed)}"
            )
        parent_of = head.parent_of or {}
        if unmapped := sorted(set(head.labels) ^ set(parent_of)):
            raise SchemaError(
                f"head {head.name!r}: parent_of must map each label and nothing else; wrong: {shortened(unmapped)}"
            )
        if unknown := sorted(set(parent_of.values()) - set(parent.labels)):
            raise SchemaError(
                f"head {head.name!r}: parent_of names labels that {head.parent!r} lacks: {shortened(unknown)}"
            )
        if childless := sorted(set(parent.labels) - set(parent_of.values())):
            raise SchemaError(
                f"head {head.name!r}: each label of {head.parent!r} needs a child, these have none: "
                f"{shortened(childless)}"
            )
        above: Head | None = parent
        for _ in range(MOST_LEVELS):
            if above is None or above.parent is None:
                return
            above = self._by_name.get(above.parent)
        raise SchemaError(f"head {head.name!r}: its parents form a cycle or more than {MOST_LEVELS} levels")


def head_from_json(fields: Any, place: str, may_lack: Set[str] = frozenset()) -> Head:
    """Reads one head; it must have every field, apart from those of `may_lack`, and no other."""
    if not isinstance(fields, Mapping):
        raise SchemaError(f"{place}: must be a table, got {type(fields).__name__}")
    if missing := [name for name in Head.model_fields if name not in fields and name not in may_lack]:
        raise SchemaError(f"{place}: missing field {missing[0]!r}")
    try:
        return Head.model_validate(dict(fields))
    except ValidationError as error:
        raise SchemaError(f"{place}: {describe(error)}") from error


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text. JSON can spell lone surrogates, which no answer could then be sent with."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _columns(widths: Mapping[str, int]) -> dict[str, slice]:
    ends = accumulate(widths.values())
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
