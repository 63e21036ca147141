"""The answers that a load test expects: real texts and the scores that the checkpoint gives them.

The file is a checkpoint's ``golden.jsonl`` or the output of ``polyhead-golden``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_client import BadResponseError, HeadSchema, Schema

FIELDS = {"text": str, "scores": list, "token_count": int, "truncated": bool}


class ExpectedAnswersError(Exception):
    """The file of expected answers cannot be used; one line with the file, the line and what is allowed."""


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
        ExpectedAnswersError: the file is missing, empty or not UTF-8, or a line breaks the checkpoint's contract.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ExpectedAnswersError(f"{path}: must be UTF-8, has another byte at offset {error.start}") from error
    except OSError as error:
        raise ExpectedAnswersError(
            f"{path}: cannot be read ({error.strerror}); give a checkpoint's golden.jsonl"
        ) from error
    if lines[-1] == "":
        lines.pop()
    answers = [_read_line(line, number, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if not answers:
        raise ExpectedAnswersError(f"{path}: is empty; give a checkpoint's golden.jsonl")
    for answer in answers:
        if len(answer.scores) != len(answers[0].scores):
            raise ExpectedAnswersError(
                f"{path}:{answer.line}: scores must be as many as in line 1 ({len(answers[0].scores)}), "
                f"got {len(answer.scores)}"
            )
    return answers


def read_heads(path: Path) -> tuple[HeadSchema, ...] | None:
    """The heads in the checkpoint's ``config.json``: labels and thresholds to hold the server's schema against.

    Returns:
        None if there is no such file.

    Raises:
        ExpectedAnswersError: the file has no heads.
    """
    if not path.exists():
        return None
    try:
        section = json.loads(path.read_text(encoding="utf-8"))["polyhead"]
        return Schema.from_json(json.dumps({"max_length": section["max_length"], "heads": section["heads"]})).heads
    except (OSError, ValueError, LookupError, TypeError, BadResponseError) as error:
        raise ExpectedAnswersError(f"{path}: has no heads of a checkpoint ({error})") from error


def _read_line(line: str, number: int, place: str) -> ExpectedAnswer:
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ExpectedAnswersError(f"{place}: is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ExpectedAnswersError(f"{place}: must be an object, got {type(fields).__name__}")
    if missing := [name for name in FIELDS if name not in fields]:
        raise ExpectedAnswersError(f"{place}: missing field {missing[0]!r}")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise ExpectedAnswersError(f"{place}: unknown field {unknown[0]!r}; allowed are {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        if type(fields[name]) is not kind:  # isinstance would take true for an int
            raise ExpectedAnswersError(f"{place}: {name} must be {kind.__name__}, got {type(fields[name]).__name__}")
    if not fields["text"].strip():
        raise ExpectedAnswersError(f"{place}: text must not be blank")
    if fields["token_count"] < 1:
        raise ExpectedAnswersError(f"{place}: token_count must be at least 1, got {fields['token_count']}")
    if not fields["scores"]:
        raise ExpectedAnswersError(f"{place}: scores must not be empty")
    for score in fields["scores"]:
        if type(score) not in (int, float) or not math.isfinite(score):
            raise ExpectedAnswersError(f"{place}: scores must be finite numbers, got {score!r}")
    scores = tuple(float(score) for score in fields["scores"])
    return ExpectedAnswer(number, fields["text"], scores, fields["token_count"], fields["truncated"])
