"""A data set's folder: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``summary.json`` and a README."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polyhead_training.errors import DataError

SPLITS = ("train", "validation", "test")


def split_of(key: str) -> str:
    """A split by a hash of the key, a tenth each for test and validation: the same in every release of the data."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def write_dataset(
    output: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], summary: Mapping[str, Any], readme: str
) -> None:
    """Writes rows, each with the name of its file, in their order; the folder appears whole or not at all.

    An older one is replaced.

    Raises:
        DataError: it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
            staged, replaced = Path(temporary) / "new", Path(temporary) / "old"
            staged.mkdir()
            lines: dict[str, list[str]] = {split: [] for split in SPLITS}
            for split, row in rows:
                lines.setdefault(split, []).append(json.dumps(row, ensure_ascii=False) + "\n")
            for split in lines:
                (staged / f"{split}.jsonl").write_text("".join(lines[split]), encoding="utf-8")
            (staged / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            (staged / "README.md").write_text(readme, encoding="utf-8")
            if output.exists():
                output.rename(replaced)
            staged.rename(output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error})") from error
