"""The result of a measurement: a JSON file with the machine, versions and command, and a plot beside it.

Importing it sets matplotlib's style for all plots.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
BLUE, ORANGE, RED, PURPLE, GREEN = "#2a6fbb", "#e0a458", "#c8553d", "#8e7cc3", "#3a7d44"

plt.rcParams |= {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.dpi": 120,
}


def report(
    settings: argparse.Namespace,
    summary: Mapping[str, Any],
    details: Mapping[str, Any],
    figure: Figure,
    machine: Mapping[str, Any],
) -> None:
    """Writes summary, settings and details to ``settings.out``, and prints the summary as the last line."""
    described = {name: value for name, value in vars(settings).items() if not isinstance(value, Path)}
    write_result(settings.out, {**summary, "settings": described, **details}, figure, machine)
    print(json.dumps(summary))


def write_result(path: Path, measured: Mapping[str, Any], figure: Figure, machine: Mapping[str, Any]) -> None:
    """Writes `measured` to ``path`` (.json) with the machine, and `figure` beside it with the ending .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**measured, "measured_on": machine}, indent=2) + "\n", encoding="utf-8")
    figure.savefig(path.with_suffix(".png"))


def describe_machine(*packages: str) -> dict[str, Any]:
    """The time, the command, the machine, and the versions of Python and some packages."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module.name if module else sys.argv[0], *sys.argv[1:]]),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
