"""What a supervisor that was killed leaves behind: orphaned processes, shared memory, its folder of backends.

Each supervisor holds a lock in /dev/shm for life, which the kernel frees when it dies, however it dies. The lock says
better than a process id, which others may get or another container may have, whether a run's things are in use.
"""

from __future__ import annotations

import contextlib
import fcntl
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

log = logging.getLogger("polyhead_serving.serve")

SHARED_MEMORY = Path("/dev/shm")
LOCK = "polyhead_lock_"  # followed by the run
ORPHANS_MAY_FINISH_S = 5.0


@contextmanager
def run_of_ones_own(shared_memory: Path = SHARED_MEMORY) -> Iterator[str]:
    """A name that those of the run's shared memory and folder start with; they are in use while the block runs."""
    run = f"polyhead_{os.getpid()}_{secrets.token_hex(3)}"
    lock = shared_memory / (LOCK + run)
    unlocked = shared_memory / f".{run}"  # no other must find it before it is locked
    with unlocked.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unlocked.rename(lock)
        try:
            yield run
        finally:
            lock.unlink(missing_ok=True)


def backends_of(run: str) -> Path:
    """Where a run links its backends."""
    return Path(tempfile.gettempdir()) / f"{run}_backends"


def remove_leftovers(shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Ends and removes what runs left behind whose supervisor is dead; gives their names."""
    removed = []
    for lock in sorted(shared_memory.glob(f"{LOCK}polyhead_*")):
        run = lock.name.removeprefix(LOCK)
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused: it lives
            if not lock.exists():  # it has just ended
                continue
            processes = _end_processes(run)
            regions = [region for region in shared_memory.glob(f"{run}*") if region.is_file()]
            for region in regions:
                region.unlink(missing_ok=True)
            shutil.rmtree(backends_of(run), ignore_errors=True)
            lock.unlink(missing_ok=True)
            removed.append(run)
            log.warning(
                "removed what a killed run left behind (%s): %d processes, %d shared-memory regions",
                run,
                processes,
                len(regions),
            )
    return removed


def _end_processes(run: str) -> int:
    """Ends what has the run's name on its command line; the server gets a moment for what it has accepted."""
    found = _processes(run)
    deadline = time.monotonic() + ORPHANS_MAY_FINISH_S
    while (left := _processes(run)) and time.monotonic() < deadline:
        if not any(b"--model-repository=" in command for command in left.values()):
            break  # model processes alone never end
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    while _processes(run) and time.monotonic() < deadline + 2:
        time.sleep(0.05)
    return len(found)


def _processes(run: str) -> dict[int, bytes]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            is_triton = b"tritonserver" in command or b"triton_python_backend_stub" in command
            if is_triton and run.encode() in command and int(folder.name) != os.getpid():
                found[int(folder.name)] = command
    return found
