"""What a benchmark leaves behind: one JSON file with machine, versions and command, and a plot beside it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, measured: dict[str, Any], figure: Figure) -> None:
    """Writes `measured` to ``path`` (.json) with what it was measured on, and `figure` to the same name (.png)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured | {"measured_on": machine()}, indent=2) + "\n", encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=120)


def machine() -> dict[str, Any]:
    """The machine, the versions, the command and the time."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }


def _module() -> str:
    """The name the running module was started by, as in ``python -m benchmarks.training``."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    return specification.name if specification else sys.argv[0]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
