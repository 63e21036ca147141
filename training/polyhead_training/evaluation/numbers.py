"""How numbers are written: on the pages, in the tables of a terminal and in notes."""

from __future__ import annotations

from typing import Any

import numpy as np


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
