"""Labels: from the cells of all rows to the schema, and from the cells of a row to a vector of numbers."""

from __future__ import annotations

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
from polyhead_training.config import HeadConfig
from polyhead_training.data.cells import Cell, CellReader
from polyhead_training.data.label_checks import check_labels, like, mending_key
from polyhead_training.data.separators import joined_by
from polyhead_training.errors import DataError

UNSEEN = -1.0  # in place of the class index of a label that training never saw


def learn_schema(
    readers: Sequence[CellReader], cells: Sequence[pyarrow.ChunkedArray], place_of: Callable[[int], str], source: str
) -> Schema:
    """The schema of the heads. Labels and parents that the config does not give are learned from the rows.

    Args:
        readers: of the heads' cells.
        cells: one column per head, with a `Cell` per row.
        place_of: a row's place, for messages.
        source: where the rows come from, for messages.

    Raises:
        DataError: a head's column holds no label, or a label has two parents.
        SchemaError: the heads contradict themselves.
    """
    configs = [reader.config for reader in readers]
    pairs = {config.name: found for config, found in _pairs(configs, cells) if config.parent_of is None}
    heads = []
    for reader, config, column in zip(readers, configs, cells, strict=True):
        labels = config.labels or reader.fixed_labels or []
        what = "number" if config.kind == HeadKind.REGRESSION else "label"
        learned = what == "label" and config.labels is None
        found = sorted(pc.unique(pc.list_flatten(column)).to_pylist()) if learned else []
        if column.null_count == len(column) or (learned and not found):
            hint = "".join(f"; {line}" for line in list(reader.notes.lines(config.at_least))[:2])
            raise DataError(f"{source}: column {reader.column!r} holds no {what} for head {config.name!r}{hint}")
        labels = labels or found
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
                    reject_by=config.reject_by,
                    parent=config.parent,
                    parent_of=parent_of,
                )
            )
        except ValidationError as error:
            raise SchemaError(f"heads: {config.name!r}: {describe(error)}") from error
    return Schema(heads)


def refuse_unknown_labels(
    readers: Sequence[CellReader],
    cells: Sequence[pyarrow.ChunkedArray],
    schema: Schema,
    place_of: Callable[[int], str],
    source: str,
) -> None:
    """Makes sure that a source of rows has no other labels than the schema.

    Raises:
        DataError: it has; the message names all of them, or the first ones, and counts their rows.
    """
    for reader, head, column in zip(readers, schema, cells, strict=True):
        if head.kind == HeadKind.REGRESSION:
            continue
        labels = pc.list_flatten(column)
        unknown = [label for label in pc.unique(labels).to_pylist() if label not in head.index_of]
        if not unknown:
            continue
        rows = pc.list_parent_indices(column).filter(pc.is_in(labels, value_set=pyarrow.array(unknown)))
        message = _not_in_schema(unknown[0], head, f"{place_of(rows[0].as_py())}: column {reader.column!r}")
        shown = ", ".join(map(repr, unknown[:10])) + (", …" if len(unknown) > 10 else "")
        raise DataError(
            f"{message}. {len(pc.unique(rows))} rows of {source} have labels that the schema lacks: {shown}; labels = "
            f"[...] of the head names all labels that it may have"
        )


def describe_labels(
    readers: Sequence[CellReader], cells: Sequence[pyarrow.ChunkedArray], source: str, scope: str = ""
) -> Iterator[str]:
    """Lines: what reading each head's cells assumed, and what looks wrong about its labels.

    Args:
        readers: of the heads' cells.
        cells: of the training rows, as for `learn_schema`.
        source: where these come from, for messages.
        scope: the splits that the readers have read.

    Raises:
        DataError: the labels are no labels.
    """
    for reader, column in zip(readers, cells, strict=True):
        config, lines = reader.config, [f"{line}{scope}" for line in reader.notes.lines(reader.config.at_least)]
        if config.kind != HeadKind.REGRESSION:
            counted = pc.value_counts(pc.list_flatten(column)).to_pylist()
            counts = {one["values"]: one["counts"] for one in counted}
            lines += check_labels(config, counts, len(column) - column.null_count, reader.notes, source)
        yield from (f"head {config.name!r}, column {reader.column!r}: {line}" for line in lines)


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
    found: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        first.setdefault(pair["label"], pair)
        found.setdefault(pair["label"], []).append(pair)
    if torn := {label: several for label, several in found.items() if len(several) > 1}:
        raise DataError(_several_parents(config, torn, place_of))
    if first and (orphans := [label for label in labels if label not in first]):
        raise DataError(
            f"heads: {config.name!r}: no row gives a parent for {', '.join(map(repr, orphans[:10]))}; "
            "add it to parent_of"
        )
    return {label: first[label]["parent"] for label in labels if label in first}


def _several_parents(config: HeadConfig, torn: dict[str, list[dict[str, Any]]], place_of: Callable[[int], str]) -> str:
    """What to say about labels that rows put below several parents: how many rows, and what mends it."""
    label, pairs = max(torn.items(), key=lambda item: sum(pair["row_count"] for pair in item[1]))
    pairs = sorted(pairs, key=lambda pair: -pair["row_count"])
    places = ", ".join(
        f"{pair['parent']!r} in {pair['row_count']:,} (first {place_of(pair['row_min'])})" for pair in pairs[:3]
    )
    others = f" and {len(pairs) - 3} others" if len(pairs) > 3 else ""
    counts = [[pair["row_count"] for pair in several] for several in torn.values()]
    rows = sum(sum(several) - max(several) for several in counts)
    most = pairs[0]["parent"]
    example = f"parent_of = {{ {json.dumps(label, ensure_ascii=False)} = {json.dumps(most, ensure_ascii=False)}, … }}"
    return (
        f"heads: {config.name!r}: a label has one parent in {config.parent!r}, but {len(torn):,} labels have several; "
        f"{rows:,} rows differ from the most frequent parent of their label. {label!r} is below {places}{others}. "
        "If these rows are wrong, correct them, or give every label's parent in parent_of, as in "
        f"{example}. If the label means several things, name them apart in the data, as in {f'{most} / {label}'!r}. "
        "Or leave out parent: the two heads then answer independently"
    )


def to_vector(
    cells: Sequence[Cell],
    schema: Schema,
    columns: Sequence[str],
    row: str,
    unseen: dict[str, list[str]] | None = None,
) -> list[float]:
    """A row of the label matrix: a class index, a number, or 0/1 per label; NaN where unknown.

    Args:
        unseen: takes the labels of each head that the schema lacks. In the vector of a single_label head such a label
            is `UNSEEN`.

    Raises:
        DataError: a label is not in the schema, and `unseen` is not given; it names row and column.
    """
    vector: list[float] = []
    for head, cell, column in zip(schema, cells, columns, strict=True):
        if cell is None:
            vector += [math.nan] * head.label_width
        elif isinstance(cell, float):
            vector.append(cell)
        else:
            unknown = [label for label in cell if label not in head.index_of]
            if unknown and unseen is None:
                raise DataError(_not_in_schema(unknown[0], head, f"{row}: column {column!r}"))
            if unknown and unseen is not None:
                unseen[head.name] = unknown
            indices = {head.index_of[label] for label in cell if label in head.index_of}
            if head.kind == HeadKind.SINGLE_LABEL:
                vector += indices or [UNSEEN]
            else:
                vector += [float(i in indices) for i in range(head.width)]
    return vector


def _not_in_schema(label: str, head: Head, place: str) -> str:
    known = ", ".join(head.labels[:10]) + (", …" if len(head.labels) > 10 else "")
    mend = mend_of(label, head)
    return f"{place}: label {label!r} is not in the schema of head {head.name!r}; allowed are {known}{mend}"


def mend_of(unknown: str, head: Head) -> str:
    """What to do about a label that the schema lacks, because it looks like one or several that it has; else empty."""
    joined = joined_by(unknown, head.index_of)
    if joined is not None:
        return f"; it looks like labels joined by {joined!r}: set separator"
    alike = next((label for label in head.labels if like(label) == like(unknown)), None)
    return "" if alike is None else f"; it looks like {alike!r}: {mending_key([unknown], alike)}"
