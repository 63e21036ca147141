"""Steps that end in each way a step can end, for tests of `benchmarks.gpu_check`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from benchmarks.gpu_check import Record, StepContext


def good(given: StepContext, record: Record) -> None:
    record("answer", 42)


def raises(given: StepContext, record: Record) -> None:
    record("before", 1)
    raise SystemExit("a score is off")


def crashes(given: StepContext, record: Record) -> None:
    record("before", 2)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(given: StepContext, record: Record) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record("child", child.pid)
    time.sleep(600)
