"""Files and folders that appear whole or not at all, and locks that the kernel frees when a process dies.

What appears is on the disk before, so the same holds after a power failure.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, a user's quota, a limit of a file's size
AT_FDCWD = -100  # renameat2(2): paths are relative to the working folder
RENAME_EXCHANGE = 2


class LockedError(OSError):
    """Another process holds the lock."""


def why_full(error: BaseException | None) -> str | None:
    """Why no more can be written, if that is the cause of an error; None if it is not.

    Libraries in other languages raise errors of many kinds, which repeat the words of the operating system at best.
    """
    while error is not None:
        text = str(error)
        for number in FULL:
            if (isinstance(error, OSError) and error.errno == number) or os.strerror(number) in text:
                return os.strerror(number)
        if "PytorchStreamWriter" in text or "inline_container.cc" in text:
            return "PyTorch could not write all of a file"
        error = error.__cause__ or error.__context__
    return None


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
        sync(part)
        os.replace(part, path)
        sync(path.parent)


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
        sync_tree(fresh)
        swap_folder(fresh, path, staging / "old")
        sync(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def swap_folder(fresh: Path, target: Path, old: Path) -> None:
    """Puts `fresh` in the place of `target`, if possible in one step; if that fails, `target` stays as it was.

    What was in this place is then at `fresh` or, if the file system cannot exchange folders, at `old`.
    """
    if not target.exists():
        os.rename(fresh, target)
        return
    try:
        exchange(fresh, target)
    except ExchangeError:
        _swap_in_two_steps(fresh, target, old)


class ExchangeError(OSError):
    """The system or the file system cannot exchange two folders in one step."""


def exchange(first: Path, second: Path) -> None:
    """Exchanges two paths in one step, so that each exists at every moment.

    Raises:
        ExchangeError: this is not possible here, as on many network file systems.
        OSError: it failed for another reason.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # the C library is older than glibc 2.28
        raise ExchangeError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(second))
    if rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    kind = ExchangeError if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV) else OSError
    raise kind(number, os.strerror(number), str(second))


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    try:
        number = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one may write into a folder that one may not list
            return
        raise
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Waits until everything in a folder is on the disk."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            if not (path := Path(parent) / name).is_symlink():
                sync(path)
        sync(Path(parent))


def _swap_in_two_steps(fresh: Path, target: Path, old: Path) -> None:
    try:
        os.rename(target, old)
        os.rename(fresh, target)
    except BaseException:  # also Ctrl-C between the two: the caller removes `old`
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
