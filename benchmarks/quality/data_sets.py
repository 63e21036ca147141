"""The five data sets: how each is read from its public files, and divided into training, validation and test rows.

A part that is published as validation stays validation. The other parts are made by a hash of the text, so they are the
same for every peer and seed, and equal texts are in one part. Published test parts are not read.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyhead.schema import HeadKind

ROOT = Path(__file__).resolve().parents[2]
TRAIN, VALIDATION, TEST, OUTSIDE = "train", "validation", "test", "outside"
TENTHS = {0: TEST, 1: VALIDATION}  # by the hash; the other eight are training rows
CLOTHING = {"department": "Department Name", "class": "Class Name", "division": "Division Name"}

Label = str | list[str] | float | None
Parts = dict[str, list["LabelledRow"]]


class DataSetError(Exception):
    """A data set is not there, or a file of it is not as published."""


@dataclass(frozen=True)
class LabelledRow:
    """A text with its labels.

    Attributes:
        labels: by head; None if the label is unknown.
        cells: the row as its file has it.
    """

    text: str
    labels: dict[str, Label]
    cells: Any


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        config: the training config that a user starts from, relative to the repository.
        heads: kinds by name, as in the config.
        files: which files it needs.
        public: where it is public.
        read: the rows of each published part. Rows of the part ``outside`` belong to no label.
        write: writes rows to a file with the ending `ending`, in the format that the config reads.
        parts_of: by the name that the config gives a file: the part that takes its place.
        rejecting: the head whose score says whether a text is outside.
    """

    name: str
    config: str
    heads: dict[str, HeadKind]
    files: tuple[str, ...]
    public: str
    read: Callable[[Path], Parts]
    write: Callable[[Sequence[LabelledRow], Path], None]
    ending: str
    parts_of: dict[str, str] = field(default_factory=dict)
    rejecting: str | None = None


def read_parts(data_set: DataSet, folder: Path, most_rows: int | None = None) -> Parts:
    """The rows of all parts, at most `most_rows` of each.

    Raises:
        DataSetError: a file is missing.
    """
    for name in data_set.files:
        if not (folder / name).is_file():
            raise DataSetError(
                f"{folder / name}: there is no such file; {data_set.name} is public at {data_set.public}; "
                "docs/quality.md says how to save it. --sets leaves data sets out"
            )
    parts = divide({part: [row for row in rows if row.text.strip()] for part, rows in data_set.read(folder).items()})
    if most_rows is not None:  # files are sorted by label, so rows are taken from all of them
        parts = {part: rows[:: max(len(rows) // most_rows, 1)][:most_rows] for part, rows in parts.items()}
    return learnable(parts)


def divide(published: Parts) -> Parts:
    """Moves training rows to the parts that are not published: of ten rows one to test, and one to validation."""
    missing = {TEST, VALIDATION} - published.keys()
    parts: Parts = {part: [] for part in (TRAIN, VALIDATION, TEST)} | published | {TRAIN: []}
    for row in published[TRAIN]:
        part = TENTHS.get(tenth(row.text), TRAIN)
        parts[part if part in missing else TRAIN].append(row)
    return parts


def learnable(parts: Parts) -> Parts:
    """Moves validation and test rows with a label that no training row has to the training rows."""
    train = list(parts[TRAIN])
    known = {pair for row in train for pair in _label_pairs(row)}
    found: Parts = {}
    for part in (VALIDATION, TEST):
        found[part] = []
        for row in parts[part]:
            if known.issuperset(_label_pairs(row)):
                found[part].append(row)
            else:
                train.append(row)
                known.update(_label_pairs(row))
    return parts | found | {TRAIN: train}


def _label_pairs(row: LabelledRow) -> set[tuple[str, str]]:
    """Each head with each of its labels."""
    pairs: set[tuple[str, str]] = set()
    for head, label in row.labels.items():
        if not isinstance(label, float):
            pairs.update((head, each) for each in (label if isinstance(label, list) else [label]) if each is not None)
    return pairs


def tenth(text: str) -> int:
    """A number from 0 to 9 that depends on the words of a text alone, not on case and blanks."""
    return int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest(), 16) % 10


def _read_debian(folder: Path) -> Parts:
    parts = {}
    for part in (TRAIN, VALIDATION, TEST):
        with (folder / f"{part}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        parts[part] = [
            LabelledRow(row["text"], {name: row[name] for name in ("section", "role", "tags")}, row) for row in rows
        ]
    return parts


def _write_lines(rows: Sequence[LabelledRow], path: Path) -> None:
    path.write_text("".join(json.dumps(row.cells) + "\n" for row in rows), encoding="utf-8")


def _read_reviews(folder: Path) -> Parts:
    rows = []
    with gzip.open(folder / "reviews.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            labels: dict[str, Label] = {head: cells[column] or None for head, column in CLOTHING.items()}
            labels["rating"] = float(cells["Rating"])
            labels["recommended"] = ["no", "yes"][int(cells["Recommended IND"])]
            title = f"{cells['Title']}. " if cells["Title"] else ""
            # A title alone is no review: polyhead-train calls it a bad row.
            rows.append(
                LabelledRow(title + cells["Review Text"] if cells["Review Text"].strip() else "", labels, cells)
            )
    return {TRAIN: rows}


def _read_banking(folder: Path) -> Parts:
    with (folder / "banking77_train.csv").open(encoding="utf-8", newline="") as file:
        return {
            TRAIN: [LabelledRow(cells["text"], {"intent": cells["category"]}, cells) for cells in csv.DictReader(file)]
        }


def _write_csv(rows: Sequence[LabelledRow], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].cells.keys())
        writer.writeheader()
        writer.writerows(row.cells for row in rows)


def _read_clinc(folder: Path) -> Parts:
    published = json.loads((folder / "clinc150.json").read_text(encoding="utf-8"))
    domains = json.loads((folder / "clinc150_domains.json").read_text(encoding="utf-8"))
    domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}

    def rows(pairs: Iterable[list[str]]) -> list[LabelledRow]:
        return [
            LabelledRow(text, {"domain": domain_of.get(intent), "intent": intent}, [text, intent])
            for text, intent in pairs
        ]

    # Polyhead's example learns from oos_train that no intent fits; the linear models have no way to.
    return {TRAIN: rows(published["train"]), VALIDATION: rows(published["val"]), OUTSIDE: rows(published["oos_val"])}


def _write_lists(rows: Sequence[LabelledRow], path: Path) -> None:
    path.write_text(json.dumps([row.cells for row in rows]), encoding="utf-8")


def _read_emotions(folder: Path) -> Parts:
    names = (folder / "goemotions_labels.txt").read_text(encoding="utf-8").split()

    def rows(file: str) -> list[LabelledRow]:
        lines = (folder / file).read_text(encoding="utf-8").split("\n")
        cells = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
        return [
            LabelledRow(row[0], {"emotions": [names[int(number)] for number in row[1].split(",")]}, row)
            for row in cells
        ]

    return {TRAIN: rows("goemotions_train.tsv"), VALIDATION: rows("goemotions_dev.tsv")}


def _write_tabs(rows: Sequence[LabelledRow], path: Path) -> None:
    path.write_text("".join("\t".join(row.cells) + "\n" for row in rows), encoding="utf-8")


ONE, MANY, NUMBER = HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL, HeadKind.REGRESSION
DEBIAN = "debian"
DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            DEBIAN,
            "training/examples/debian.toml",
            {"section": ONE, "role": ONE, "tags": MANY},
            ("train.jsonl", "validation.jsonl", "test.jsonl"),
            "Debian's package index, which polyhead-dataset debian reads",
            _read_debian,
            _write_lines,
            ".jsonl",
            {f"{part}.jsonl": part for part in (TRAIN, VALIDATION, TEST)},
        ),
        DataSet(
            "reviews",
            "training/examples/reviews.toml",
            {"department": ONE, "class": ONE, "division": ONE, "rating": NUMBER, "recommended": ONE},
            ("reviews.csv.gz",),
            "kaggle.com/datasets/nicapotato/womens-ecommerce-clothing-reviews",
            _read_reviews,
            _write_csv,
            ".csv",
            {"reviews.csv.gz": TRAIN, "reviews.csv": TRAIN},
        ),
        DataSet(
            "banking77",
            "training/examples/banking77.toml",
            {"intent": ONE},
            ("banking77_train.csv",),
            "github.com/PolyAI-LDN/task-specific-datasets",
            _read_banking,
            _write_csv,
            ".csv",
            {"banking77_train.csv": TRAIN},
        ),
        DataSet(
            "clinc150",
            "training/examples/clinc150.toml",
            {"domain": ONE, "intent": ONE},
            ("clinc150.json", "clinc150_domains.json"),
            "github.com/clinc/oos-eval",
            _read_clinc,
            _write_lists,
            ".json",
            {"clinc150.json#train": TRAIN, "clinc150.json#val": VALIDATION},
            rejecting="intent",
        ),
        DataSet(
            "goemotions",
            "training/examples/goemotions.toml",
            {"emotions": MANY},
            ("goemotions_train.tsv", "goemotions_dev.tsv", "goemotions_labels.txt"),
            "github.com/google-research/google-research/tree/master/goemotions",
            _read_emotions,
            _write_tabs,
            ".tsv",
            {"goemotions_train.tsv": TRAIN, "goemotions_dev.tsv": VALIDATION},
        ),
    )
}
