"""Measuring in turns, and the result of a benchmark: as `loadtest.result`, with what torch says about the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure

from loadtest import result
from loadtest.result import RESULTS

__all__ = ["RESULTS", "in_turns", "machine", "write_result"]

T = TypeVar("T")


def in_turns(title: str, runs: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Makes all runs in turns, so that a disturbance of the machine hits all of them; prints and returns results."""
    found: dict[str, list[T]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
            print(f"{title}, repeat {repeat + 1}, {name}: {found[name][-1]}", flush=True)
    return found


def write_result(path: Path, measured: Mapping[str, Any], figure: Figure) -> None:
    """Writes `measured` to ``path`` (.json) with the machine, and `figure` beside it with the ending .png."""
    result.write_result(path, measured, figure, machine())


def machine() -> dict[str, Any]:
    """The machine, the versions, the command and the time."""
    return result.describe_machine("torch", "transformers", "tokenizers", "numpy") | {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
