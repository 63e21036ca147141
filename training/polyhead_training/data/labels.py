"""Labels: from the cells of a row to the schema and to vectors of numbers."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from polyhead.errors import SchemaError, describe
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import HeadConfig
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.sources import as_text
from polyhead_training.errors import BadRowError, DataError

Cell = list[str] | float | None
"""A head's labels of one row (at most one if it is single_label), or the number of a regression; None if unknown."""

LABEL_TRANSFORMS: dict[str, Callable[[str], str]] = {"strip": str.strip, "lowercase": str.lower}

LARGEST = float(np.finfo(np.float32).max)  # labels are stored as float32


class CellReader:
    """Reads the cells of one head's column."""

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.column = config.column or config.name
        self._transforms = [
            LABEL_TRANSFORMS.get(name)
            or UserFunction.named(name, f"heads.{config.name}.label_transforms", tuple(LABEL_TRANSFORMS))
            for name in config.label_transforms
        ]

    def read(self, value: Any, row: str) -> Cell:
        """The cell's labels or number.

        Args:
            row: its place, for messages.

        Raises:
            BadRowError: the cell holds neither; it names row and column.
        """
        place = f"{row}: column {self.column!r}"
        if isinstance(value, float) and math.isnan(value):
            value = None  # data frames write NaN for it
        if self.config.kind == HeadKind.REGRESSION:
            return self._number(value, place)
        if value is None or (value == "" and self.config.kind == HeadKind.SINGLE_LABEL):
            return None
        if self.config.kind == HeadKind.SINGLE_LABEL:
            return [label] if (label := self._label(value, place)) else None
        values = self.split(value)
        if not isinstance(values, list):
            raise BadRowError(f"{place}: a multi_label head needs a list of labels or a text, got {value!r}")
        labels = (self._label(tag, place) for tag in values if as_text(tag) is not None)
        return list(dict.fromkeys(label for label in labels if label))

    def split(self, value: Any) -> Any:
        """The labels of a multi_label head's text cell: a list, or the parts between separators. Others stay."""
        if not isinstance(value, str | bytes):
            return value
        text = (as_text(value) or "").strip()
        if text.startswith("[") and (found := _spelled_list(text)) is not None:
            return found
        return [tag.strip() for tag in text.split(self.config.separator) if tag.strip()]

    def _label(self, value: Any, place: str) -> str:
        if not isinstance(value, str | bytes | int | float):  # a bool is an int
            raise BadRowError(f"{place}: a label is a text or a number, got {type(value).__name__} {value!r}")
        label = as_text(value) or ""
        for transform in self._transforms:
            label = transform.text(label, place=place) if isinstance(transform, UserFunction) else transform(label)
        try:
            label.encode("utf-8")  # JSON can spell lone surrogates, which no file holds
        except UnicodeEncodeError:
            raise BadRowError(f"{place}: a label must be valid Unicode, got {label!r}") from None
        return label

    def _number(self, value: Any, place: str) -> float | None:
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise BadRowError(f"{place}: a regression needs finite numbers in float32's range, got {value!r}")
        lowest, highest = self.config.y_range or (-math.inf, math.inf)
        if not lowest <= number <= highest:
            raise BadRowError(f"{place}: must lie in the y_range {lowest:g} to {highest:g}, got {value!r}")
        return number


def _spelled_list(text: str) -> list[Any] | None:
    """The list that a text spells in JSON, or in Python as pandas writes it. None if it is a label with a bracket."""
    try:
        return list(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(found, list) or not all(isinstance(part, str | int | float | None) for part in found):
        return None
    # Python joins neighbouring texts: without this check ['a' 'b'], as numpy writes it, would be one label "ab".
    return found if "".join(repr(found).split()) == "".join(text.split()) else None


def learn_schema(configs: Sequence[HeadConfig], rows: Iterable[tuple[str, Sequence[Cell]]], source: str) -> Schema:
    """The schema of the heads. Labels and parents that the config does not give are learned from the rows.

    Args:
        rows: each row's place and its cells, one per head.
        source: where they come from, for messages.

    Raises:
        DataError: a head's column holds no label, or a label has two parents.
        SchemaError: the heads contradict themselves.
    """
    position = {config.name: i for i, config in enumerate(configs)}
    learn_labels = [i for i, c in enumerate(configs) if c.labels is None and c.kind != HeadKind.REGRESSION]
    learn_parents = [
        (i, position[c.parent])
        for i, c in enumerate(configs)
        if c.parent in position
        and c.parent_of is None
        and c.kind == configs[position[c.parent]].kind == HeadKind.SINGLE_LABEL
    ]
    labels: list[set[str]] = [set() for _ in configs]
    parents: list[dict[str, tuple[str, str]]] = [{} for _ in configs]  # a label's parent, and the row that says so
    for place, cells in rows if learn_labels or learn_parents else ():
        for i in learn_labels:
            labels[i].update(_labels_in(cells[i]))
        for child, parent in learn_parents:
            for label, above in zip(_labels_in(cells[child]), _labels_in(cells[parent]), strict=False):
                _learn_parent(parents[child], configs[child], label, above, place)
    for i in learn_labels:
        if not labels[i]:
            name = configs[i].name
            raise DataError(f"{source}: column {configs[i].column or name!r} holds no label for head {name!r}")
    return Schema(
        [
            _to_head(config, sorted(labels[i]), {label: parent for label, (parent, _) in parents[i].items()})
            for i, config in enumerate(configs)
        ]
    )


def _learn_parent(parents: dict[str, tuple[str, str]], config: HeadConfig, label: str, parent: str, place: str) -> None:
    known, first = parents.setdefault(label, (parent, place))
    if known != parent:
        raise DataError(
            f"{place}: label {label!r} of head {config.name!r} is below {parent!r} of {config.parent!r}, "
            f"but below {known!r} in {first}; a label has one parent"
        )


def count_contradictions(
    configs: Sequence[HeadConfig], rows: Iterable[tuple[str, Sequence[Cell]]]
) -> dict[str, tuple[int, str]]:
    """By head, how many rows contradict the config's `parent_of`, and the place of the first one.

    Args:
        rows: as for `learn_schema`.
    """
    position = {config.name: i for i, config in enumerate(configs)}
    given = [
        (i, position[c.parent], c.parent_of) for i, c in enumerate(configs) if c.parent in position and c.parent_of
    ]
    found: dict[str, tuple[int, str]] = {}
    for place, cells in rows if given else ():
        for child, parent, parent_of in given:
            for label, above in zip(_labels_in(cells[child]), _labels_in(cells[parent]), strict=False):
                if parent_of.get(label, above) != above:
                    count, first = found.get(configs[child].name, (0, place))
                    found[configs[child].name] = count + 1, first
    return found


def _labels_in(cell: Cell) -> list[str]:
    return cell if isinstance(cell, list) else []


def _to_head(config: HeadConfig, labels: list[str], parents: dict[str, str]) -> Head:
    labels = config.labels if config.labels is not None else labels
    parent_of = config.parent_of
    if config.parent is not None and parent_of is None:
        if parents and (orphans := [label for label in labels if label not in parents]):
            raise DataError(
                f"heads: {config.name!r}: no row gives a parent for {', '.join(map(repr, orphans[:10]))}; "
                "add it to parent_of"
            )
        parent_of = {label: parents[label] for label in labels if label in parents}
    try:
        return Head(
            name=config.name,
            kind=config.kind,
            labels=tuple(labels),
            weight=config.weight,
            y_range=config.y_range,
            parent=config.parent,
            parent_of=parent_of,
        )
    except ValidationError as error:
        raise SchemaError(f"heads: {config.name!r}: {describe(error)}") from error


def to_vector(cells: Sequence[Cell], schema: Schema, columns: Sequence[str], row: str) -> list[float]:
    """A row of the label matrix: a class index, a number, or 0/1 per label; NaN where unknown.

    Raises:
        DataError: a label is not in the schema; it names row and column.
    """
    vector: list[float] = []
    for head, cell, column in zip(schema, cells, columns, strict=True):
        if cell is None:
            vector += [math.nan] * head.label_width
        elif isinstance(cell, float):
            vector.append(cell)
        else:
            indices = {_index(label, head, f"{row}: column {column!r}") for label in cell}
            vector += (
                indices if head.kind == HeadKind.SINGLE_LABEL else [float(i in indices) for i in range(head.width)]
            )
    return vector


def _index(label: str, head: Head, place: str) -> int:
    index = head.index_of.get(label)
    if index is None:
        known = ", ".join(head.labels[:10]) + (", …" if len(head.labels) > 10 else "")
        raise DataError(f"{place}: label {label!r} is not in the schema of head {head.name!r}; allowed are {known}")
    return index
