"""A run as its report tells of it: answers and true labels of its evaluated rows, from ``predictions.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet

from polyhead.checkpoint_files import read_json
from polyhead.errors import CheckpointError, shortened
from polyhead.schema import HeadKind
from polyhead_training.errors import ConfigError, DataError

PREDICTIONS = "predictions.parquet"
ANSWER_PARTS = {HeadKind.SINGLE_LABEL: "label", HeadKind.MULTI_LABEL: "labels", HeadKind.REGRESSION: "value"}
PLACES = {"text", "file", "row", "split"}


@dataclass(frozen=True)
class ReportedRun:
    """The evaluated rows of a run.

    Attributes:
        table: ``text``, the answers of the heads, ``HEAD_true``, and ``file``, ``row`` and ``split`` of newer reports.
        heads: kinds by name, in order.
        labels: of each head, if the report lists them.
        measured_on: the report's sentence about its rows, if it has one.
    """

    name: str
    table: pandas.DataFrame
    heads: dict[str, HeadKind]
    labels: dict[str, list[str]]
    measured_on: str = ""


def answer_column(name: str, kind: HeadKind) -> str:
    """The column of a head's answer in ``predictions.parquet``."""
    return f"{name}_{ANSWER_PARTS[kind]}"


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Reads reports. A path is a checkpoint folder, a report folder, or a ``predictions.parquet``.

    Raises:
        ConfigError: fewer than two paths, or one that is given twice or has no report.
        DataError: a file is no table of predictions.
    """
    if len(paths) < 2:
        raise ConfigError("name at least two runs; each is compared with the first one")
    files = [_predictions(path) for path in paths]
    for place, file in enumerate(files):
        if file.resolve() in [other.resolve() for other in files[:place]]:
            raise ConfigError(f"{paths[place]}: this run is given twice")
    return [_read(file, name) for file, name in zip(files, _names(paths), strict=True)]


def _predictions(path: Path) -> Path:
    for found in (path, path / PREDICTIONS, path / "report" / PREDICTIONS):
        if found.is_file():
            return found
    if not path.exists():
        raise ConfigError(f"{path}: there is no such folder")
    raise ConfigError(
        f"{path}: holds no {PREDICTIONS}; name a checkpoint of polyhead-train or a report of polyhead-evaluate"
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [[part for part in path.resolve().parts if part not in (PREDICTIONS, "report")] for path in paths]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read(path: Path, name: str) -> ReportedRun:
    try:
        types = pyarrow.parquet.read_schema(path)
        heads = _heads(types)
        wanted = [field for field in types.names if field in PLACES or _belongs(field, heads)]
        table = pyarrow.parquet.read_table(path, columns=wanted).to_pandas(ignore_metadata=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({shortened(str(error))})") from error
    if "text" not in table or not heads:
        raise DataError(f"{path}: is no {PREDICTIONS} of a report: it needs the columns text, HEAD_true and HEAD_label")
    if not len(table):
        raise DataError(f"{path}: holds no row")
    content = _metrics(path.parent / "metrics.json")
    return ReportedRun(name, table, heads, _labels(content), str(content.get("measured_on", "")))


def _heads(types: pyarrow.Schema) -> dict[str, HeadKind]:
    """Kinds by name: a head has ``HEAD_true`` and a column of answers."""
    names = set(types.names)
    heads = [field.removesuffix("_true") for field in types.names if field.endswith("_true")]
    return {head: kind for head in heads for kind in ANSWER_PARTS if answer_column(head, kind) in names}


def _belongs(field: str, heads: dict[str, HeadKind]) -> bool:
    head, _, part = field.rpartition("_")
    return head in heads and part in {"true", "score", *ANSWER_PARTS.values()}


def _metrics(path: Path) -> dict[str, Any]:
    """The content of ``metrics.json``; empty if there is none that can be read."""
    try:
        content = read_json(path)
    except CheckpointError:
        return {}
    return content if isinstance(content, dict) else {}


def _labels(content: dict[str, Any]) -> dict[str, list[str]]:
    """``heads_labels``; empty if the report has none."""
    found = content.get("heads_labels")
    if not isinstance(found, dict):
        return {}
    return {str(head): [str(label) for label in labels] for head, labels in found.items() if isinstance(labels, list)}
