"""A data set's folder: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``summary.json`` and a README."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polyhead.files import replaced_folder
from polyhead_training.errors import DataError

SPLITS = ("train", "validation", "test")


def split_of(key: str) -> str:
    """A split by a hash of the key, a tenth each for test and validation: the same in every release of the data."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def check_dataset_folder(output: Path) -> None:
    """Makes sure that a data set can be written to `output` without harm to anything else.

    Raises:
        DataError: something that is no data set stands there.
    """
    if not output.exists():
        return
    names = {entry.name for entry in output.iterdir()} if output.is_dir() else None
    if names is None or (names and "summary.json" not in names):
        raise DataError(f"{output}: holds something that is no data set; it is not replaced, name another folder")


def write_dataset(
    output: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], summary: Mapping[str, Any], readme: str
) -> None:
    """Writes rows, each with the name of its file, in their order; the folder appears whole or not at all.

    An older data set is replaced.

    Raises:
        DataError: it cannot be written, or something else stands there.
    """
    check_dataset_folder(output)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, row in rows:
        lines.setdefault(split, []).append(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        with replaced_folder(output) as fresh:
            for split in lines:
                (fresh / f"{split}.jsonl").write_text("".join(lines[split]), encoding="utf-8")
            (fresh / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            (fresh / "README.md").write_text(readme, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error})") from error
