"""Labels: from the cells of a row to the schema and to vectors of numbers."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
from pydantic import ValidationError

from polyhead.errors import SchemaError, describe
from polyhead.schema import Head, HeadKind, Schema
from polyhead.template import as_text
from polyhead_training.config import HeadConfig
from polyhead_training.data.functions import UserFunction
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
            label.encode("utf-8")  # JSON can spell lone surrogates, but no UTF-8 file can store them
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


def learn_schema(
    configs: Sequence[HeadConfig], cells: Sequence[pyarrow.ChunkedArray], place_of: Callable[[int], str], source: str
) -> Schema:
    """The schema of the heads. Labels and parents that the config does not give are learned from the rows.

    Args:
        cells: one column per head, with a `Cell` per row.
        place_of: a row's place, for messages.
        source: where the rows come from, for messages.

    Raises:
        DataError: a head's column holds no label, or a label has two parents.
        SchemaError: the heads contradict themselves.
    """
    pairs = {config.name: found for config, found in _pairs(configs, cells) if config.parent_of is None}
    heads = []
    for config, column in zip(configs, cells, strict=True):
        labels = config.labels or []
        if config.labels is None and config.kind != HeadKind.REGRESSION:
            labels = sorted(pc.unique(pc.list_flatten(column)).to_pylist())
            if not labels:
                name = config.name
                raise DataError(f"{source}: column {config.column or name!r} holds no label for head {name!r}")
        parent_of = config.parent_of
        if config.parent is not None and parent_of is None:
            parent_of = _learn_parents(config, labels, pairs.get(config.name, []), place_of)
        try:
            heads.append(
                Head(
                    name=config.name,
                    kind=config.kind,
                    labels=tuple(labels),
                    weight=config.weight,
                    y_range=config.y_range,
                    parent=config.parent,
                    parent_of=parent_of,
                )
            )
        except ValidationError as error:
            raise SchemaError(f"heads: {config.name!r}: {describe(error)}") from error
    return Schema(heads)


def count_contradictions(
    configs: Sequence[HeadConfig], cells: Sequence[pyarrow.ChunkedArray]
) -> dict[str, tuple[int, int]]:
    """By head, how many rows contradict the config's `parent_of`, and which is the first of them."""
    found = {}
    for config, pairs in _pairs(configs, cells):
        given = config.parent_of or {}
        if wrong := [pair for pair in pairs if given.get(pair["label"], pair["parent"]) != pair["parent"]]:
            found[config.name] = sum(pair["row_count"] for pair in wrong), wrong[0]["row_min"]
    return found


def _pairs(
    configs: Sequence[HeadConfig], cells: Sequence[pyarrow.ChunkedArray]
) -> Iterator[tuple[HeadConfig, list[dict[str, Any]]]]:
    """For each head below another: each pair of ``label`` and ``parent``, with ``row_count`` and ``row_min``."""
    singles = {c.name: column for c, column in zip(configs, cells, strict=True) if c.kind == HeadKind.SINGLE_LABEL}
    for config in configs:
        if config.name in singles and config.parent in singles:
            names = {"label": config.name, "parent": config.parent}
            columns = {key: pc.list_element(singles[name], 0) for key, name in names.items()}
            table = pyarrow.table(columns | {"row": np.arange(len(columns["label"]))}).drop_null()
            groups = table.group_by(["label", "parent"]).aggregate([("row", "count"), ("row", "min")])
            yield config, groups.sort_by("row_min").to_pylist()


def _learn_parents(
    config: HeadConfig, labels: Sequence[str], pairs: Sequence[dict[str, Any]], place_of: Callable[[int], str]
) -> dict[str, str]:
    first: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        label, parent, known = pair["label"], pair["parent"], first.setdefault(pair["label"], pair)
        if known["parent"] != parent:
            raise DataError(
                f"{place_of(pair['row_min'])}: label {label!r} of head {config.name!r} is below {parent!r} of "
                f"{config.parent!r}, but below {known['parent']!r} in {place_of(known['row_min'])}; "
                "a label has one parent"
            )
    if first and (orphans := [label for label in labels if label not in first]):
        raise DataError(
            f"heads: {config.name!r}: no row gives a parent for {', '.join(map(repr, orphans[:10]))}; "
            "add it to parent_of"
        )
    return {label: first[label]["parent"] for label in labels if label in first}


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
            if unknown := [label for label in cell if label not in head.index_of]:
                known = ", ".join(head.labels[:10]) + (", …" if len(head.labels) > 10 else "")
                raise DataError(
                    f"{row}: column {column!r}: label {unknown[0]!r} is not in the schema of head {head.name!r}; "
                    f"allowed are {known}"
                )
            indices = {head.index_of[label] for label in cell}
            vector += (
                indices if head.kind == HeadKind.SINGLE_LABEL else [float(i in indices) for i in range(head.width)]
            )
    return vector
