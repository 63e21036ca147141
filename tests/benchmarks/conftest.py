"""A data set of forty rows, for every benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.quality_data import write_data_sets
from tests.tiny import TEXTS

LABELS = [("games", "program"), ("libs", "shared-lib")]


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A folder as polyhead-dataset debian makes it, of forty rows a split."""
    for split in ("train", "validation", "test"):
        rows = []
        for place in range(40):
            section, role = LABELS[place % 2]
            text = f"{section} {TEXTS[place % len(TEXTS)]} {split} {place}"
            rows.append({"text": text, "section": section, "role": role, "tags": [["x"], ["y", "x"], []][place % 3]})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder with all made-up data sets of the quality benchmark."""
    folder = tmp_path / "public"
    folder.mkdir()
    write_data_sets(folder)
    return folder
