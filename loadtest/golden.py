"""The golden texts of a checkpoint: real texts with the fp32 scores that the model must give."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_client import BadResponseError, HeadSchema, ModelSchema

FIELDS = {"text": str, "scores": list, "token_count": int, "truncated": bool}


class GoldenError(Exception):
    """The golden file cannot be used; one line that names the file, the line and what is allowed."""


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """One text and what the model must say of it; `scores` in the schema's order, `line` counts from 1."""

    line: int
    text: str
    scores: tuple[float, ...]
    token_count: int
    truncated: bool


def read_golden(path: Path) -> list[GoldenRow]:
    """Reads ``golden.jsonl``.

    Raises:
        GoldenError: the file is missing, empty, not UTF-8, or a line is not as the contract says.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise GoldenError(f"{path}: must be UTF-8, has another byte at offset {error.start}") from error
    except OSError as error:
        raise GoldenError(f"{path}: cannot be read ({error.strerror}); give a checkpoint's golden.jsonl") from error
    if lines[-1] == "":
        lines.pop()
    rows = [_read_row(line, number, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if not rows:
        raise GoldenError(f"{path}: is empty; give a checkpoint's golden.jsonl")
    for row in rows:
        if len(row.scores) != len(rows[0].scores):
            raise GoldenError(
                f"{path}:{row.line}: scores must be as many as in line 1 ({len(rows[0].scores)}), got {len(row.scores)}"
            )
    return rows


def read_heads(path: Path) -> tuple[HeadSchema, ...] | None:
    """The heads of the checkpoint's ``config.json``, so that labels and thresholds are not taken on the server's word.

    Returns:
        None where the golden file stands alone.

    Raises:
        GoldenError: the file is there but has no heads.
    """
    if not path.exists():
        return None
    try:
        section = json.loads(path.read_text(encoding="utf-8"))["polyhead"]
        return ModelSchema.from_json(json.dumps({"max_length": section["max_length"], "heads": section["heads"]})).heads
    except (OSError, ValueError, LookupError, TypeError, BadResponseError) as error:
        raise GoldenError(f"{path}: has no heads of a checkpoint ({error})") from error


def _read_row(line: str, number: int, place: str) -> GoldenRow:
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GoldenError(f"{place}: is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise GoldenError(f"{place}: must be an object, got {type(fields).__name__}")
    if missing := [name for name in FIELDS if name not in fields]:
        raise GoldenError(f"{place}: missing field {missing[0]!r}")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise GoldenError(f"{place}: unknown field {unknown[0]!r}; allowed are {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        # bool is an int in Python, not in the file.
        if type(fields[name]) is not kind:
            raise GoldenError(f"{place}: {name} must be {kind.__name__}, got {type(fields[name]).__name__}")
    if not fields["text"].strip():
        raise GoldenError(f"{place}: text must not be blank")
    if fields["token_count"] < 1:
        raise GoldenError(f"{place}: token_count must be at least 1, got {fields['token_count']}")
    if not fields["scores"]:
        raise GoldenError(f"{place}: scores must not be empty")
    for score in fields["scores"]:
        if type(score) not in (int, float) or not math.isfinite(score):
            raise GoldenError(f"{place}: scores must be finite numbers, got {score!r}")
    scores = tuple(float(score) for score in fields["scores"])
    return GoldenRow(number, fields["text"], scores, fields["token_count"], fields["truncated"])
