"""What a run must reach, from a TOML file, and whether it did reach it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import CannotRunError

# Objective: the figure of the summary that it limits. ``min_`` is a lower limit, all others are upper limits.
BOUNDS = {
    "p50_ms": "p50_ms",
    "p95_ms": "p95_ms",
    "p99_ms": "p99_ms",
    "error_rate": "error_rate",
    "mismatch_rate": "mismatch_rate",
    "min_texts_s": "texts_s",
}
# These hold even if the file does not mention them: a fast wrong answer is not a success, and neither is a lost one.
ALWAYS = {"error_rate": 0.0, "mismatch_rate": 0.0}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One objective and its measured figure; None if there was nothing to measure."""

    objective: str
    limit: float
    measured: float | None
    met: bool


def read_objectives(path: Path | None) -> dict[str, float]:
    """Reads the file. The objectives in `ALWAYS` apply unless the file sets them.

    Raises:
        CannotRunError: the file cannot be read, or a key or value is not allowed.
    """
    if path is None:
        return dict(ALWAYS)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotRunError(f"{path}: cannot be read as TOML ({error})") from error
    for name, value in fields.items():
        if name not in BOUNDS:
            raise CannotRunError(f"{path}: unknown key {name!r}; allowed are {', '.join(BOUNDS)}")
        # isinstance takes true for an int
        if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 0 and math.isfinite(value)):
            raise CannotRunError(f"{path}: {name} must be a number of at least 0, got {value!r}")
        if name.endswith("_rate") and value > 1:
            raise CannotRunError(f"{path}: {name} is a share of requests, at most 1, got {value!r}")
    return ALWAYS | {name: float(value) for name, value in fields.items()}


def judge(objectives: Mapping[str, float], figures: Mapping[str, Any]) -> list[Verdict]:
    """Compares each objective with its figure; without a figure the objective is missed."""
    verdicts = []
    for name, limit in objectives.items():
        measured = figures[BOUNDS[name]]
        met = measured is not None and (measured >= limit if name.startswith("min_") else measured <= limit)
        verdicts.append(Verdict(name, limit, measured, met))
    return verdicts
