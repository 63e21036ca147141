"""A text of several labels: what may stand between them, and how it is cut."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from polyhead_rows.spelling import SpellingError, read_spelled

SEPARATORS = (";", "|", "\t", ",", " ", "/", " & ", "+", ":")
CERTAIN = SEPARATORS[:4]  # in a label they are a separator more often than not

_TAGS = re.compile(r"(\s*<[^<>]+>)+\s*")
_LINES = re.compile(r"[\r\n\t]+")
_BULLET = re.compile(r"\s*[-*•·]\s+")


def parts_between(text: str, separator: str) -> list[str]:
    """The parts between separators, without blanks around them."""
    return [part.strip() for part in text.split(separator)]


def line_parts(text: str) -> list[str]:
    """The parts between line breaks and tabs, without the marks of a list."""
    return [_BULLET.sub("", line).strip() for line in _LINES.split(text.strip())]


def tag_parts(text: str) -> list[str] | None:
    """The labels of ``<c#><java>``; None if the text has other parts."""
    return re.findall(r"<([^<>]+)>", text) if _TAGS.fullmatch(text) else None


def quoted_parts(text: str) -> list[str] | None:
    """The parts of ``'a', 'b'`` or ``"a"``; None if the text has other parts than quoted ones."""
    if len(text) < 2 or text[0] not in "\"'" or text[-1] not in "\"'":
        return None
    try:
        found = read_spelled(f"[{text}]")
    except SpellingError:
        return None
    return found if isinstance(found, list) and all(isinstance(part, str) for part in found) else None


def cut_bracket(text: str, parts: Sequence[str]) -> str | None:
    """A part that opens a bracket which another part closes; None if there is none."""
    if len(parts) == 1 or _depth(text) != 0:
        return None
    cut = next((part for part in parts if _depth(part) != 0), None)
    return cut if cut is not None and _depth(cut) > 0 else None


def joined_by(text: str, labels: Container[str]) -> str | None:
    """The separator between the labels that a text has; None if it has other parts."""
    for separator in SEPARATORS:
        parts = [part for part in parts_between(text, separator) if part]
        if len(parts) > 1 and all(part in labels for part in parts):
            return separator
    return None


def _depth(text: str) -> int:
    return sum(text.count(mark) for mark in "([{") - sum(text.count(mark) for mark in ")]}")
