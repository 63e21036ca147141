"""Whichever step of an export or a deployment is its last, the repository stays servable, and the next one succeeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.placed_kills import FAULTS, SCENARIOS


@pytest.fixture(scope="module")
def results() -> Any:
    """Tries every fault at every step, in a process with one thread, because it forks."""
    memory = Path("/dev/shm")  # each attempt waits for the disk at many steps
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.placed_kills", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", [kind.__name__ for kind in SCENARIOS])
def test_a_fault_at_every_step(results: Any, scenario: str, fault: str) -> None:
    """Killed or with a failing disk: what is served is the old or the new checkpoint with its own labels."""
    steps, findings = results[scenario][fault]
    assert findings == []
    assert steps > 10
