"""Files and folders that appear whole or not at all, and locks that the kernel frees when a process dies."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockedError(OSError):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, create: bool = True, remove: bool = False) -> Iterator[None]:
    """Holds an exclusive lock on a file.

    Args:
        create: whether the file is made if it is missing.
        remove: whether the file is removed at the end.

    Raises:
        LockedError: another process holds it.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    with path.open("a" if create else "r+") as file:
        refusal = LockedError(f"{path}: another process holds this lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        # The last holder may have removed the file after it was opened here: then this lock is on no file.
        if remove and not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
            raise refusal
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to; when the block ends without an error, that file is synced and renamed to `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file in one step: after a crash it holds its old content or `content`, never a part of it."""
    with replaced_file(path) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Gives a fresh folder to write to; when the block ends without an error, it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh = staging / "new"
        fresh.mkdir()
        yield fresh
        swap_folder(fresh, path, staging / "old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def swap_folder(fresh: Path, target: Path, old: Path) -> None:
    """Renames `target`, if it exists, to `old`, and `fresh` to `target`; if that fails, `target` stays as it was."""
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
    except BaseException:  # also Ctrl-C between the two: the caller removes `old`
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
