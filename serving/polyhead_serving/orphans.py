"""Orphans of a killed supervisor: processes, shared memory and a folder of backends. The next supervisor removes them.

Each supervisor locks a file in /dev/shm for as long as it lives. The kernel frees the lock however the supervisor dies.
A process id would not do: another process may get the same one, in this container or in another.

Every user can write to /dev/shm and /tmp. So a supervisor takes only its own user's files and processes for orphans,
and only if name, content or argument is exactly what a supervisor writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyhead_serving.ports import user_name

log = logging.getLogger("polyhead_serving")

SHARED_MEMORY = Path("/dev/shm")
LOCK_PREFIX = "polyhead_lock_"  # followed by the run's name, which the file also contains
ORPHAN_DRAIN_S = 5.0
NAMES_TRIED = 100

_LOCK = re.compile(rf"{LOCK_PREFIX}(polyhead_[0-9]+_[0-9a-f]{{16}})")


@contextmanager
def run_lock(shared_memory: Path = SHARED_MEMORY) -> Iterator[str]:
    """Gives this run a name, a lock and an empty folder for backends. The names of its shared memory start with it."""
    run, file = _new_run(shared_memory)
    try:
        yield run
    finally:
        shutil.rmtree(backends_folder(run), ignore_errors=True)
        (shared_memory / (LOCK_PREFIX + run)).unlink(missing_ok=True)
        os.close(file)


def _new_run(shared_memory: Path) -> tuple[str, int]:
    """Returns the name of a new run and its locked file. If another user has taken the name, tries another one."""
    for _ in range(NAMES_TRIED):
        run = f"polyhead_{os.getpid()}_{secrets.token_hex(8)}"
        try:
            # First, while nobody can know the name: whoever made this folder could exchange what the server loads.
            backends_folder(run).mkdir(mode=0o700)
            try:
                return run, _lock_new_file(shared_memory, run)
            except BaseException:
                backends_folder(run).rmdir()
                raise
        except FileExistsError as error:
            place = Path(error.filename2 or error.filename)
            log.warning("%s exists and belongs to %s: trying another name", place, _owner(place))
    raise OSError(f"{shared_memory}: {NAMES_TRIED} new names were taken, so another user works against this one")


def _lock_new_file(shared_memory: Path, run: str) -> int:
    lock, hidden = shared_memory / (LOCK_PREFIX + run), shared_memory / f".{run}"
    file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(file, run.encode("ascii"))
        os.link(hidden, lock)  # only now, because `remove_orphans` must not find it unlocked; never replaces a file
    except BaseException:
        os.close(file)
        raise
    finally:
        hidden.unlink()
    return file


def backends_folder(run: str) -> Path:
    """Where a run links its backends."""
    return Path(tempfile.gettempdir()) / f"{run}_backends"


def remove_orphans(shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Ends the processes and removes the files of runs whose supervisor is dead; returns the names of these runs."""
    removed = []
    for lock in sorted(shared_memory.glob(f"{LOCK_PREFIX}*")):
        with _orphaned(lock) as run:
            if run is None:
                continue
            processes = _end_processes(run)
            regions = remove_regions(run, shared_memory)
            folder = backends_folder(run)
            if _is_own(folder):
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                lock.unlink()
            removed.append(run)
            log.warning(
                "removed the orphans of %s, whose supervisor was killed: %d processes, %d shared-memory regions",
                run,
                processes,
                regions,
            )
    return removed


def remove_regions(run: str, shared_memory: Path = SHARED_MEMORY) -> int:
    """Removes the shared memory of a run; returns how many regions it had. Other users' files stay."""
    removed = 0
    for region in shared_memory.glob(f"{run}*"):
        with contextlib.suppress(OSError):
            if _is_own(region):
                region.unlink()
                removed += 1
    return removed


def readable_regions(run: str, shared_memory: Path = SHARED_MEMORY) -> list[Path]:
    """The shared memory of a run that other users can read or change."""
    found = []
    for region in shared_memory.glob(f"{run}*"):
        with contextlib.suppress(OSError):  # it has just been removed
            if _is_own(region) and region.stat().st_mode & 0o077:
                found.append(region)
    return found


@contextmanager
def _orphaned(lock: Path) -> Iterator[str | None]:
    """Gives the run of a lock file of this user, and holds its lock. Gives None if its supervisor lives, or for any
    other file, such as a link to another run's lock file.
    """
    name = _LOCK.fullmatch(lock.name)
    run, file = name[1] if name else "", None
    with contextlib.ExitStack() as opened:
        try:
            if run and _is_own(lock):
                file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                opened.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run may have ended just before the lock was taken here: then the name is gone.
                is_same = os.path.samestat(os.fstat(file), lock.lstat())
                if not (is_same and _is_own(file) and os.read(file, 100) == run.encode("ascii")):
                    file = None
        except OSError:  # among others: the supervisor lives and holds the lock
            file = None
        yield None if file is None else run


def _is_own(place: Path | int) -> bool:
    """Whether it is a file or folder of this user, and no link or pipe."""
    try:
        status = os.fstat(place) if isinstance(place, int) else place.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def _owner(place: Path) -> str:
    try:
        return user_name(place.lstat().st_uid)
    except OSError:
        return "nobody now"


def _end_processes(run: str) -> int:
    """Kills the processes of the run; a server that is draining gets a moment to finish. Returns their number."""
    found = _processes(run)
    deadline = time.monotonic() + ORPHAN_DRAIN_S
    # Without their server, model processes never end by themselves.
    while any(_processes(run).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in _processes(run):
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                if pid in _processes(run):  # the id may have gone to another process before it was opened
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)
    while _processes(run) and time.monotonic() < deadline + 2:
        time.sleep(0.05)
    return len(found)


def _processes(run: str) -> dict[int, bool]:
    """The ids of this user's processes of that run: tritonserver (True) and its model processes (False)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.geteuid() or int(folder.name) == os.getpid():
                continue
            program, *arguments = (folder / "cmdline").read_bytes().split(b"\0")
            match program.rpartition(b"/")[2]:
                case b"tritonserver" if shm_argument(run).encode() in arguments:
                    found[int(folder.name)] = True
                case b"triton_python_backend_stub" if _has_region(run.encode(), arguments):
                    found[int(folder.name)] = False
    return found


def shm_argument(run: str) -> str:
    """The argument by which Triton's Python backend names the shared memory of a run."""
    return f"--backend-config=python,shm-region-prefix-name={run}"


def _has_region(run: bytes, arguments: list[bytes]) -> bool:
    return any(argument.removeprefix(b"/").startswith(run) for argument in arguments)
