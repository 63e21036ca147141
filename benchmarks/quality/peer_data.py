"""What a peer's process gets, as a folder: training and validation rows with labels, test rows without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.data_sets import OUTSIDE, TEST, TRAIN, VALIDATION, DataSet, Label, Parts
from polyhead.schema import Head, HeadKind


@dataclass(frozen=True)
class Targets:
    """The labels of one head in some rows.

    Attributes:
        known: which rows have a label that the head can answer.
        values: of the known rows: label indices ``(n,)``, 0/1 ``(n, labels)``, or numbers ``(n,)``.
    """

    known: NDArray[np.bool_]
    values: NDArray[Any]


@dataclass(frozen=True)
class PeerData:
    """The rows of all parts.

    Attributes:
        heads: labels are those of the training rows, sorted.
        texts: by part.
        rejecting: the head whose score says whether a text of the part ``outside`` belongs to no label.
    """

    heads: list[Head]
    texts: dict[str, list[str]]
    labels: dict[str, list[dict[str, Label]]]
    rejecting: str | None = None

    def targets(self, head: Head, part: str) -> Targets:
        """What a model of this head learns from, or is chosen by."""
        return targets(head, [row[head.name] for row in self.labels[part]])


def targets(head: Head, labels: Sequence[Label]) -> Targets:
    """Labels as arrays. Rows with an unknown label or with one that the head does not have are left out."""
    place = {label: index for index, label in enumerate(head.labels)}
    match head.kind:
        case HeadKind.SINGLE_LABEL:
            found = np.array([place.get(str(label), -1) for label in labels], dtype=np.int64)
            return Targets(found >= 0, found[found >= 0])
        case HeadKind.MULTI_LABEL:
            matrix = np.zeros((len(labels), head.width), np.int8)
            for row, given in enumerate(labels):
                assert isinstance(given, list)
                matrix[row, [place[label] for label in given if label in place]] = 1
            return Targets(np.ones(len(labels), bool), matrix)
        case HeadKind.REGRESSION:
            numbers = np.array([np.nan if label is None else label for label in labels], dtype=np.float64)
            return Targets(~np.isnan(numbers), numbers[~np.isnan(numbers)])


def write_peer_data(folder: Path, data_set: DataSet, parts: Parts) -> None:
    """Writes the folder. The labels of test rows are not in it."""
    for part, rows in parts.items():
        has_labels = part in (TRAIN, VALIDATION)
        lines = (json.dumps({"text": row.text} | ({"labels": row.labels} if has_labels else {})) for row in rows)
        (folder / f"{part}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    described = {name: kind.value for name, kind in data_set.heads.items()}
    content = {"heads": described, "rejecting": data_set.rejecting}
    (folder / "heads.json").write_text(json.dumps(content), encoding="utf-8")


def read_peer_data(folder: Path) -> PeerData:
    """Reads the folder."""
    described = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    rows = {}
    for part in (TRAIN, VALIDATION, TEST, OUTSIDE):
        if (folder / f"{part}.jsonl").exists():
            with (folder / f"{part}.jsonl").open(encoding="utf-8") as lines:
                rows[part] = [json.loads(line) for line in lines]
    labels = {part: [row["labels"] for row in rows[part]] for part in (TRAIN, VALIDATION)}
    heads = [make_head(name, HeadKind(kind), labels[TRAIN]) for name, kind in described["heads"].items()]
    texts = {part: [row["text"] for row in found] for part, found in rows.items()}
    return PeerData(heads, texts, labels, described["rejecting"])


def make_head(name: str, kind: HeadKind, training_labels: Sequence[dict[str, Label]]) -> Head:
    """A head with the labels of the training rows."""
    if kind == HeadKind.REGRESSION:
        return Head(name=name, kind=kind)
    found: set[str] = set()
    for row in training_labels:
        label = row[name]
        found.update(label if isinstance(label, list) else [] if label is None else [str(label)])
    return Head(name=name, kind=kind, labels=tuple(sorted(found)))
