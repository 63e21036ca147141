"""The result of a measurement: a JSON file with the machine, versions and command, and a plot beside it."""

from __future__ import annotations

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

from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def write_result(path: Path, measured: Mapping[str, Any], figure: Figure, machine: Mapping[str, Any]) -> None:
    """Writes `measured` to ``path`` (.json) with the machine, and `figure` beside it with the ending .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**measured, "measured_on": machine}, indent=2) + "\n", encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=120)


def describe_machine(*packages: str) -> dict[str, Any]:
    """The time, the command, the machine, and the versions of Python and some packages."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _module() -> str:
    """The module that runs, such as ``loadtest.capacity`` for ``python -m loadtest.capacity``."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    return specification.name if specification else sys.argv[0]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
