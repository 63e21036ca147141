"""``[[heads]]``: a head, the column of its labels, what their cells mean, and the head's part of the loss."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from polyhead.schema import HeadKind, RejectBy
from polyhead_rows.errors import TableError
from polyhead_rows.names import read_names
from polyhead_training.config.section import Section
from polyhead_training.errors import ConfigError

OF_LABELS = (
    "label_smoothing", "label_transforms", "separator", "columns", "positions", "names", "unnamed", "empty_cells",
    "at_least", "pattern", "as_written",
)  # fmt: skip
"""Keys of `HeadConfig` that a regression has no use for."""


class HeadConfig(Section):
    """One head, the column that holds its labels, and its part of the loss.

    Attributes:
        name: of the head in answers and metrics.
        kind: what it answers: one of n labels, any of n labels, or a number.
        column: by default the head's name; ``doc.label`` is the field of an object.
        columns: instead of `column`: one column per label, with 0 or 1. Their names are the labels.
        positions: names of the positions, if a cell is a vector of 0 and 1.
        labels: in index order; by default the sorted labels of all rows of train, including those held out.
        names: what ids or spellings are called: a list from 0 on, a table, or a file (`polyhead_rows.names`).
        unnamed: what a label is that `names` lacks: an ``error``, or ``keep`` it. By default it is kept only if `names`
            is a table here that has other keys than numbers.
        missing: texts that mean unknown, whatever their case, instead of those in `polyhead_training.data.scalars`.
        empty_cells: what an empty text means: ``no_labels`` (the default of a multi_label head with one column) or
            ``unknown``.
        at_least: a share between 0 and 1 counts as the label from here on.
        as_written: takes a text as it is: brackets, quotes, tags, bullets and so on are letters, and only `separator`
            cuts it. By default `polyhead_rows.spelling` and `polyhead_training.data.text_forms` read it.
        pattern: a regular expression that finds the labels in a text, or its one group does.
        label_transforms: ``strip``, ``lowercase``, ``whole_number`` (``1.0`` becomes ``1``) or
            ``package.module:function`` (label to label).
        separator: between the labels of a multi_label head if a cell is text.
        weight: of the head's loss in the sum.
        parent: the head of the level above in a taxonomy.
        parent_of: for each label, the label of `parent` that it belongs to. By default it is learned from the same rows
            as `labels`.
        y_range: regression only: the lowest and the highest value that the head can answer.
        class_weights: single_label only: the weight of each label's rows, or ``balanced``: n / (labels * its rows).
        positive_weights: multi_label only: the weight of each label's positive rows, or ``balanced``: negative /
            positive rows.
        out_of_scope: single_label only: what a cell holds if the text belongs to none of the labels. Such training
            rows teach the head that no label fits. Such validation and test rows measure what it does not know.
        reject: single_label only: which texts get no label. ``{ coverage = 0.95 }`` answers the surest 95 % of the
            texts. ``{ precision = 0.98 }`` answers as many as it can while 98 % of the answers are right. Both are
            fitted on the validation rows that have a label. A number is the lowest score that is answered.
        reject_by: single_label only: what decides which texts are the surest. ``score`` is that of the best label.
            ``certainty`` looks at all scores: it finds more texts out of scope, and fewer mistakes among the others.
        label_smoothing: single_label and multi_label only (Szegedy et al. 2016, arXiv:1512.00567).
    """

    name: str = Field(examples=["topic"])
    kind: HeadKind
    column: str | None = Field(default=None, examples=["Topic"])
    columns: list[str] | None = Field(default=None, min_length=2, examples=[["toxic", "insult"]])
    positions: list[str] | None = Field(default=None, min_length=2, examples=[["news", "sport", "science"]])
    labels: list[str] | None = Field(default=None, examples=[["news", "sport", "science"]])
    names: list[str] | dict[str, str] | str | None = Field(default=None, examples=[{"27": "neutral"}, "labels.txt"])
    unnamed: Literal["error", "keep"] | None = None
    missing: list[str] | None = Field(default=None, examples=[["tbd", "-1"]])
    empty_cells: Literal["no_labels", "unknown"] | None = None
    at_least: float = Field(default=0.5, gt=0, le=1)
    as_written: bool = False
    pattern: str | None = Field(default=None, examples=[r"#(\w+)"])
    label_transforms: list[str] = Field(default=[], examples=[["lowercase"]])
    separator: str = Field(default=",", min_length=1, examples=[";"])
    weight: float = Field(default=1.0, ge=0, examples=[0.5])
    parent: str | None = Field(default=None, examples=["country"])
    parent_of: dict[str, str] | None = Field(default=None, examples=[{"Sydney": "Australia", "Utrecht": "Netherlands"}])
    y_range: tuple[float, float] | None = Field(default=None, examples=[(1.0, 5.0)])
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    positive_weights: Literal["balanced"] | dict[str, float] | None = None
    out_of_scope: str | None = Field(default=None, examples=["oos"])
    reject: Annotated[float, Field(strict=True)] | dict[Literal["coverage", "precision"], float] | None = Field(
        default=None, examples=[{"coverage": 0.95}]
    )
    reject_by: RejectBy = "score"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, examples=[0.05])

    @model_validator(mode="before")
    @classmethod
    def _read_names(cls, fields: Any, info: ValidationInfo) -> Any:
        """Makes `names` a table, so that nobody needs its file again: not the reader, not the record of a training.

        A file that a checkpoint names is not read.

        Raises:
            ConfigError: the file cannot be read, or is no table of names.
        """
        names = fields.get("names") if isinstance(fields, dict) else None
        if isinstance(names, str) and not (info.context or {}).get("is_recorded"):
            try:
                names = read_names(names)
            except TableError as error:
                raise ConfigError(f"heads: {fields.get('name')!r}: names: {error}") from error
        elif isinstance(names, list):
            names = {str(number): name for number, name in enumerate(names)}
        else:
            return fields
        return fields | {"names": names, "unnamed": fields.get("unnamed") or "error"}

    @model_validator(mode="after")
    def _agree(self) -> HeadConfig:
        for field, kinds in {
            "y_range": (HeadKind.REGRESSION,),
            **dict.fromkeys(("class_weights", "out_of_scope", "reject", "reject_by"), (HeadKind.SINGLE_LABEL,)),
            "positive_weights": (HeadKind.MULTI_LABEL,),
            **dict.fromkeys(OF_LABELS, (HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL)),
        }.items():
            if getattr(self, field) != type(self).model_fields[field].default and self.kind not in kinds:
                raise ValueError(f"{field} goes with kind {' or '.join(kinds)}, not {self.kind}")
        if self.column is not None and self.columns is not None:
            raise ValueError("give either column or columns")
        if self.columns is not None and (self.positions is not None or self.pattern is not None):
            raise ValueError("columns have a cell per label; positions and pattern are for one cell with all labels")
        if self.positions is not None and (self.pattern is not None or self.names is not None):
            raise ValueError("positions says what vectors mean; names and pattern are for labels in cells")
        for field in ("columns", "positions"):
            if len(set(found := getattr(self, field) or [])) < len(found):
                raise ValueError(f"{field} must differ, got {found}")
        self._check_pattern()
        if isinstance(self.reject, dict) and (len(self.reject) != 1 or not 0 < min(self.reject.values()) < 1):
            raise ValueError(f"reject needs coverage or precision, one number between 0 and 1, got {self.reject}")
        if isinstance(self.reject, float) and not 0 <= self.reject <= 1:
            raise ValueError(f"reject must be a score from 0 to 1, got {self.reject}")
        if self.out_of_scope is not None and self.columns is not None:
            raise ValueError("out_of_scope is what one cell holds; it does not go with columns")
        if self.y_range is not None and not self.y_range[0] < self.y_range[1]:
            raise ValueError(f"y_range must be two numbers, the lower first, got {list(self.y_range)}")
        if self.parent_of is not None and self.parent is None:
            raise ValueError("parent_of goes with parent")
        return self

    def _check_pattern(self) -> None:
        if self.pattern is None:
            return
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        if groups > 1:
            raise ValueError(f"pattern {self.pattern!r} must have one group, or none; (?:...) groups nothing")
