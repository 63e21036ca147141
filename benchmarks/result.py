"""The result of a benchmark: as `loadtest.result`, with what torch says about the machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from loadtest import result
from loadtest.result import RESULTS

__all__ = ["RESULTS", "machine", "write_result"]


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
