"""The results of a chaos run: one record per fault, the table, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.count import Count

RECORDS = "POLYHEAD_CHAOS_RECORDS"  # environment variable: the folder of the records
COLUMNS = ("fault", "requests", "answered", "shed", "lost", "wrong", "recovery s")


@dataclass(frozen=True)
class Fault:
    """One fault that was injected.

    Attributes:
        name: its name in the table.
        numbers: counts of the requests meanwhile, see `tests.chaos.count`.
        recovery_s: seconds from the fault until all answers were right again; None if nothing had to recover.
        notes: other measurements.
        examples: the first few requests that were lost or wrong.
    """

    name: str
    numbers: dict[str, int]
    recovery_s: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, count: Count, recovery_s: float | None, notes: dict[str, Any]) -> Fault:
        """From a count."""
        rounded = None if recovery_s is None else round(recovery_s, 1)
        return cls(name, count.numbers(), rounded, notes, list(count.examples))


def write_record(fault: Fault, folder: Path) -> None:
    """Keeps it for the table."""
    number = len(list(folder.glob("*.json")))
    (folder / f"{number:02}.json").write_text(json.dumps(asdict(fault)), encoding="utf-8")


def read_records(folder: Path) -> list[Fault]:
    """The records in the order of the faults."""
    return [Fault(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]


def totals(faults: Sequence[Fault]) -> dict[str, int]:
    """The line that `make chaos` prints last."""
    summed = {name: sum(fault.numbers[name] for fault in faults) for name in ("requests", "lost", "wrong")}
    return {"faults": len(faults), **summed}


def table(faults: Sequence[Fault]) -> str:
    """The table in Markdown, which is also readable on a terminal."""
    rows = [COLUMNS, tuple("-" * len(column) for column in COLUMNS)]
    for fault in faults:
        numbers = [f"{fault.numbers[name]:,}" for name in ("requests", "answered", "shed", "lost", "wrong")]
        rows.append((fault.name, *numbers, "" if fault.recovery_s is None else f"{fault.recovery_s:g}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
