"""The answers that a load test expects: real texts and the scores that the checkpoint gives them.

The file is a checkpoint's ``golden.jsonl`` or the output of ``polyhead-golden``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from loadtest import CannotRunError
from polyhead_client import BadResponseError, HeadSchema, ModelSchema
from polyhead_rows.errors import TableError
from polyhead_rows.table_file import ReadOptions, Row, open_table

FIELDS = {"text": str, "scores": list, "token_count": int, "truncated": bool}


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """One text and its expected answer; `scores` in the order of the schema, `line` counts from 1."""

    line: int
    text: str
    scores: tuple[float, ...]
    token_count: int
    truncated: bool


def read_expected(path: Path) -> list[ExpectedAnswer]:
    """Reads a file of expected answers.

    Raises:
        CannotRunError: the file cannot be read or is empty, or a line breaks the checkpoint's contract.
    """
    try:
        table = open_table(str(path), ReadOptions(format="jsonl"))
        answers = [_read_row(row, table.place_of(row)) for row in table.rows()]
    except TableError as error:
        raise CannotRunError(f"{error}; expected a checkpoint's golden.jsonl") from error
    if not answers:
        raise CannotRunError(f"{path}: is empty; expected a checkpoint's golden.jsonl")
    wanted = len(answers[0].scores)
    for answer in answers:
        if len(answer.scores) != wanted:
            raise CannotRunError(
                f"{path}:{answer.line}: scores must be as many as in the first line ({wanted}), "
                f"got {len(answer.scores)}"
            )
    return answers


def read_heads(path: Path) -> tuple[HeadSchema, ...] | None:
    """The heads in the checkpoint's ``config.json``: labels and thresholds to hold the server's schema against.

    Returns:
        None if there is no such file.

    Raises:
        CannotRunError: the file has no heads.
    """
    if not path.exists():
        return None
    try:
        section = json.loads(path.read_text(encoding="utf-8"))["polyhead"]
        return ModelSchema.from_json(json.dumps({"max_length": section["max_length"], "heads": section["heads"]})).heads
    except (OSError, ValueError, LookupError, TypeError, BadResponseError) as error:
        raise CannotRunError(f"{path}: has no heads of a checkpoint ({error})") from error


def _read_row(row: Row, place: str) -> ExpectedAnswer:
    fields = row.fields
    if fields is None:
        raise CannotRunError(f"{place}: {row.reason}")
    if missing := [name for name in FIELDS if name not in fields]:
        raise CannotRunError(f"{place}: missing field {missing[0]!r}")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise CannotRunError(f"{place}: unknown field {unknown[0]!r}; allowed are {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        if type(fields[name]) is not kind:  # isinstance would take true for an int
            raise CannotRunError(f"{place}: {name} must be {kind.__name__}, got {type(fields[name]).__name__}")
    if not fields["text"].strip():
        raise CannotRunError(f"{place}: text must not be blank")
    if fields["token_count"] < 1:
        raise CannotRunError(f"{place}: token_count must be at least 1, got {fields['token_count']}")
    if not fields["scores"]:
        raise CannotRunError(f"{place}: scores must not be empty")
    for score in fields["scores"]:
        if type(score) not in (int, float) or not math.isfinite(score):
            raise CannotRunError(f"{place}: scores must be finite numbers, got {score!r}")
    scores = tuple(float(score) for score in fields["scores"])
    return ExpectedAnswer(row.line or row.number, fields["text"], scores, fields["token_count"], fields["truncated"])
