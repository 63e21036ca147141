"""Single values of cells: which texts mean unknown, how a label is spelled, and what a share or a number is."""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from polyhead.template import as_text
from polyhead_rows.spelling import shortened
from polyhead_training.errors import BadRowError

MISSING = (
    "nan", "null", "none", "na", "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "nat", "nil", "undefined", "-nan",
    "1.#qnan", "-1.#ind", "1.#ind", "-1.#qnan", "(null)", "<null>", "n.a.", "\\n", "-", "--", "---", "–", "—", "?",
    "??", "???", "...", "…", "•", "·", "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!",
)  # fmt: skip
"""Texts that mean unknown, whatever their case: those that pandas reads as missing, and what databases, spreadsheets
and people write for it."""

LARGEST = float(np.finfo(np.float32).max)  # labels are stored as float32

_POINT_ZERO = re.compile(r"([+-]?\d+)\.0*")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f]")  # zero-width space, word joiner, soft hyphen, marks
_JOINERS = "\u200c\u200d "  # between two characters they mean something, at an end they do not
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s?%", re.ASCII)
_ON = {"true", "yes", "y", "t", "x", "on"}
_OFF = {"false", "no", "n", "f", "off"}
SWITCHES = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"}, {"on", "off"})
_ENDS = ",;|，；、،؛"


def whole_number(label: str) -> str:
    """``1.0`` becomes ``1``; any other label stays."""
    found = _POINT_ZERO.fullmatch(label)
    return found[1] if found else label


LABEL_TRANSFORMS: dict[str, Callable[[str], str]] = {
    "strip": str.strip, "lowercase": str.lower, "whole_number": whole_number,
}  # fmt: skip


def evened(text: str) -> str:
    """The text in Unicode form NFC, without invisible characters and blanks around it, with single blanks within."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
        return " ".join(text.split()).strip(_JOINERS)
    return " ".join(text.split())


def without_ends(label: str) -> str:
    """The label without separators at its ends; ``;)`` is a label."""
    plain = label.strip(" " + _ENDS)
    return plain if not plain or any(map(str.isalnum, plain)) else label


def label_text(value: Any, place: str) -> str:
    """A label as text. The same value gives the same text in every format.

    Raises:
        BadRowError: it is neither text, number, truth value, date nor time.
    """
    if isinstance(value, datetime.datetime) and value.tzinfo is None and value.time() == datetime.time():
        value = value.date()  # as data frames write it to CSV
    if isinstance(value, Decimal) and value.is_finite():
        value = int(value) if value == value.to_integral_value() else format(value.normalize(), "f")
    if not isinstance(value, str | bytes | int | float | datetime.date | datetime.time | UUID):  # a bool is an int
        kind, shown = type(value).__name__, shortened(repr(value))
        raise BadRowError(f"{place}: a label is a text or a number, got {kind} {shown}")
    return as_text(value) or ""


def is_nothing(value: Any) -> bool:
    """None, and NaN, which data frames write for it."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def share_of(value: Any) -> float | None:
    """0 or 1, also as truth value or word, or a share between them, also as ``90%``; None if it is none of these."""
    if isinstance(value, str):
        word = evened(value).casefold()
        if word in _ON or word in _OFF:
            return float(word in _ON)
        if percent := _PERCENT.fullmatch(word):
            return float(percent[1]) / 100 if float(percent[1]) <= 100 else None
        if not _DECIMAL.fullmatch(word):
            return None
        value = float(word)
    if not isinstance(value, bool | int | float | Decimal) or is_nothing(value) or not 0 <= value <= 1:
        return None
    return float(value)


def are_switches(parts: Sequence[Any]) -> bool:
    """Whether values may be a vector with a 0, a 1, a share or one of two words per position."""
    if not all(isinstance(part, str) for part in parts):
        return all(not isinstance(part, str) and share_of(part) is not None for part in parts)
    words = {evened(part).casefold() for part in parts}
    return any(words <= pair for pair in SWITCHES) or all(
        _DECIMAL.fullmatch(word) and share_of(word) is not None and (word in ("0", "1") or "." in word)
        for word in words
    )


def number_in(parts: Sequence[Any] | None, y_range: tuple[float, float] | None, place: str) -> float | None:
    """The number of a regression that a cell's parts are; None if nothing is known.

    Raises:
        BadRowError: they are no finite number in the range, or several.
    """
    if not parts:
        return None
    if len(parts) > 1:
        raise BadRowError(f"{place}: a regression needs one number, got {len(parts)}: {shortened(repr(parts))}")
    number = number_of(parts[0])
    if not abs(number) <= LARGEST:
        raise BadRowError(
            f"{place}: a regression needs finite numbers in float32's range, written as 4 or 12.5, got "
            f"{shortened(repr(parts[0]))}"
        )
    lowest, highest = y_range or (-math.inf, math.inf)
    if not lowest <= number <= highest:
        raise BadRowError(f"{place}: must lie in the y_range {lowest:g} to {highest:g}, got {parts[0]!r}")
    return number


def number_of(value: Any) -> float:
    """A finite number, also as text with a decimal point; NaN if the value is none."""
    if isinstance(value, str) and _DECIMAL.fullmatch(evened(value)):
        return float(evened(value))
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.nan
    return math.nan
