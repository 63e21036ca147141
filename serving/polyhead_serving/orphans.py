"""Orphans of a killed supervisor: processes, shared memory and a folder of backends. The next supervisor removes them.

Each supervisor locks a file in /dev/shm for as long as it lives. The kernel frees the lock however the supervisor dies.
A process id would not do: another process may get the same one, in this container or in another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyhead.files import file_lock

log = logging.getLogger("polyhead_serving")

SHARED_MEMORY = Path("/dev/shm")
LOCK_PREFIX = "polyhead_lock_"  # followed by the run's name
ORPHAN_DRAIN_S = 5.0


@contextmanager
def run_lock(shared_memory: Path = SHARED_MEMORY) -> Iterator[str]:
    """Gives this run a name and holds its lock. The names of its shared memory and backends start with that name."""
    run = f"polyhead_{os.getpid()}_{secrets.token_hex(3)}"
    lock = shared_memory / (LOCK_PREFIX + run)
    hidden = shared_memory / f".{run}"  # `remove_orphans` must not find the file before it is locked
    with file_lock(hidden):
        hidden.rename(lock)
        try:
            yield run
        finally:
            lock.unlink(missing_ok=True)


def backends_folder(run: str) -> Path:
    """Where a run links its backends."""
    return Path(tempfile.gettempdir()) / f"{run}_backends"


def remove_orphans(shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Ends the processes and removes the files of runs whose supervisor is dead; returns the names of these runs."""
    removed = []
    for lock in sorted(shared_memory.glob(f"{LOCK_PREFIX}polyhead_*")):
        run = lock.name.removeprefix(LOCK_PREFIX)
        with contextlib.suppress(OSError), file_lock(lock, create=False):  # if it is locked, the supervisor lives
            if not lock.exists():  # the run has just ended
                continue
            processes = _end_processes(run)
            regions = [region for region in shared_memory.glob(f"{run}*") if region.is_file()]
            for region in regions:
                region.unlink(missing_ok=True)
            shutil.rmtree(backends_folder(run), ignore_errors=True)
            lock.unlink(missing_ok=True)
            removed.append(run)
            log.warning(
                "removed the orphans of %s, whose supervisor was killed: %d processes, %d shared-memory regions",
                run,
                processes,
                len(regions),
            )
    return removed


def _end_processes(run: str) -> int:
    """Kills the processes of the run; a server that is draining gets a moment to finish. Returns their number."""
    found = _processes(run)
    deadline = time.monotonic() + ORPHAN_DRAIN_S
    while (left := _processes(run)) and time.monotonic() < deadline:
        if not any(b"--model-repository=" in command for command in left.values()):
            break  # model processes never end by themselves
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    while _processes(run) and time.monotonic() < deadline + 2:
        time.sleep(0.05)
    return len(found)


def _processes(run: str) -> dict[int, bytes]:
    """The command lines of Triton's processes that contain the run's name, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            is_triton = b"tritonserver" in command or b"triton_python_backend_stub" in command
            if is_triton and run.encode() in command and int(folder.name) != os.getpid():
                found[int(folder.name)] = command
    return found
