"""How numbers, texts and lists of labels are written: on the pages, in the tables of a terminal and in notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_LISTED = 5  # labels in a sentence
LABEL_LENGTH = 40  # characters of a label in a sentence


def number(value: Any) -> str:
    """A number as the page shows it: three digits after the point of a share, four digits of anything else."""
    if value is None:
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1 or 0 < size < 0.001 else f"{value:.3f}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def quoted(label: str) -> str:
    """A label in a sentence."""
    return f"“{shorten(label, LABEL_LENGTH)}”"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more
