"""Rows to score: plain ones, and ones of every kind that cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import TEXTS


def plain_rows(count: int) -> list[dict[str, Any]]:
    """Rows of different texts, with a key and more."""
    return [
        {"id": i, "text": f"{TEXTS[i % len(TEXTS)]} {i}", "lang": ["en", "de", None][i % 3], "price": i / 4}
        for i in range(count)
    ]


# Lines of JSONL, and the reason that the output gives; in one of them, the key is lost with the rest of the line.
BAD_LINES = {
    b'{"id": 100, "text": null}': "the text is missing",
    b'{"id": 101}': "the text is missing",
    b'{"id": 102, "text": 5}': "the text must be a string, got int",
    b'{"id": 103, "text": ["a"]}': "the text must be a string, got list",
    b'{"id": 104, "text": "a lone \\ud800 surrogate"}': "the text is not valid UTF-8",
    b'{"id": 105, "text": "broken \xff byte"}': "the text is not valid UTF-8",
    b'{"id": 106, "text": ""}': "the text is empty or blank",
    b'{"id": 107, "text": " \\n\\t"}': "the text is empty or blank",
    b'{"id": 108, "text": "cut': "the line is not JSON",
    b'["id", 109]': "the line must be an object, got list",
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
