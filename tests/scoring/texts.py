"""Rows to score: plain ones, and ones of every kind that cannot be scored."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.tiny import TEXTS


def plain_rows(count: int) -> list[dict[str, Any]]:
    """Rows of different texts, with a key and more."""
    return [
        {"id": i, "text": f"{TEXTS[i % len(TEXTS)]} {i}", "lang": ["en", "de", None][i % 3], "price": i / 4}
        for i in range(count)
    ]


# Lines of JSONL, and what stands in the reason that the output gives; the last two lose their key with the line.
BAD_LINES = {
    b'{"id": 100, "text": null}': "column 'text' is null",
    b'{"id": 101}': "no column 'text'",
    b'{"id": 102, "text": 5}': "must be a string, got a number",
    b'{"id": 103, "text": ["a"]}': "must be a string, got a list",
    b'{"id": 104, "text": "a lone \\ud800 surrogate"}': "half of a surrogate pair",
    b'{"id": 106, "text": ""}': "the text is empty or blank",
    b'{"id": 107, "text": " \\n\\t"}': "the text is empty or blank",
    b'{"id": 105, "text": "broken \xff byte"}': "UTF-8",
    b'{"id": 108, "text": "cut': "is not JSON",
    b'["id", 109]': "object",
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an output file of any format, or of a folder of parts."""
    if path.is_dir() or path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if ".csv" in path.suffixes and path.suffix != ".jsonl":
        return list(csv.DictReader(io.StringIO(lines, newline="")))
    if path.suffix == ".json":
        return list(json.loads(lines))
    return [json.loads(line) for line in lines.splitlines()]
