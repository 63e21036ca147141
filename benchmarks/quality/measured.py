"""Runs a command and writes what it took: ``python measured.py OUT.json SECONDS LOG COMMAND...``.

Linux counts the memory of a process's parent as its own until the process runs its program. So this parent is small: it
imports only the standard library, and is started as a file, not as a module of the package.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def run(command: list[str], limit_s: float, log: Path) -> dict[str, object]:
    """Runs the command, and ends it and its children if it takes longer than `limit_s`.

    Returns:
        Exit code, whether the limit ended it, wall and CPU seconds, and the peak memory of its largest process in MB.
    """
    is_over = threading.Event()
    with log.open("wb") as output:
        started = time.monotonic()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

        def stop(*_: object) -> None:
            os.killpg(child.pid, signal.SIGKILL)

        def stop_late() -> None:
            is_over.set()
            stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        clock = threading.Timer(limit_s, stop_late)
        clock.start()
        _, status, used = os.wait4(child.pid, 0)
        clock.cancel()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "is_over": is_over.is_set(),
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "memory_mb": round(used.ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    target, limit, log_file, *words = sys.argv[1:]
    Path(target).write_text(json.dumps(run(words, float(limit), Path(log_file))), encoding="utf-8")
