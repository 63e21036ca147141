"""A folder of rotated files of lines, which several processes may write to: each has files of its own.

A file that is being written is locked, and no one removes it. All other files together with the room that the open ones
may still take stay within a bound; the oldest are removed first. Only files with names like these are touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

FILE = re.compile(r"answers-[0-9]{8}T[0-9]{12}Z-[0-9a-f]{8}\.jsonl")
FILES = 16  # a full file has this share of the bound
ROTATE_S = 3600.0
CLEAN_EVERY_S = 60.0
OPEN = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class RotatedFiles:
    """The files of one process in a folder. Not safe for threads.

    Args:
        folder: is made for this user only if it is missing.
        most_bytes: of all files together.
        keep_s: a file whose last line is older is removed.

    Attributes:
        removed: files that this object has removed so far.
        longest: the most bytes of a line, with its end.
    """

    def __init__(self, folder: Path, most_bytes: int, keep_s: float) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._keep_s = keep_s
        self.removed = 0
        self.longest = max(most_bytes // FILES, 1)
        self._file: int | None = None
        self._size = 0
        self._opened = self._cleaned = float("-inf")  # time.monotonic seconds

    def write(self, lines: Sequence[bytes]) -> Iterator[int]:
        """Writes lines, each with its end and at most `longest`; yields how many more are written.

        A line that does not fit on the disk is cut off again, so the file ends with a whole line.

        Raises:
            OSError: the rest is not written.
        """
        position = 0
        if self._file is not None and not os.fstat(self._file).st_nlink:
            self.close()  # a person has removed it
        while position < len(lines):
            if self._file is None:
                self._open()
            room, end = self.longest - self._size, position
            while end < len(lines) and len(lines[end]) <= room:
                room -= len(lines[end])
                end += 1
            if end == position:
                self.close()
                continue
            written, failure = self._append(b"".join(lines[position:end]))
            position += written
            yield written
            if failure is not None:
                raise failure

    def clean(self) -> None:
        """Ends a file that is old, and now and then removes files that are too old or too many."""
        now = time.monotonic()
        if self._file is not None and now - self._opened > ROTATE_S:
            self.close()
        if now - self._cleaned > CLEAN_EVERY_S:
            self._make_room()

    def close(self) -> None:
        """Ends the current file; the next line begins another one."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # of a late write, on a network file system
                os.close(file)

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = self._folder / f"answers-{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(4)}.jsonl"
            self._file, self._size, self._opened = os.open(path, OPEN, 0o600), 0, time.monotonic()
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_nlink:  # else another process has removed it before it was locked
                break
            self.close()
        if not self._make_room():
            self.close()
            path.unlink(missing_ok=True)
            raise OSError(errno.ENOSPC, "files that others write to take all the room", str(self._folder))

    def _append(self, data: bytes) -> tuple[int, OSError | None]:
        assert self._file is not None
        done, failure = 0, None
        try:
            while done < len(data):
                done += os.write(self._file, memoryview(data)[done:])
        except OSError as error:
            failure = error
            whole = data.rfind(b"\n", 0, done) + 1
            try:
                if done != whole:
                    os.ftruncate(self._file, self._size + whole)
            except OSError:
                self.close()
            done = whole
        self._size += done
        return data.count(b"\n", 0, done), failure

    def _make_room(self) -> bool:
        """Removes old files; returns whether all others leave room for as many bytes as their writers may still add."""
        self._cleaned = time.monotonic()
        oldest, total = time.time() - self._keep_s, 0
        found = []
        with suppress(FileNotFoundError):
            found = sorted(entry.name for entry in os.scandir(self._folder) if FILE.fullmatch(entry.name))
        closed: list[tuple[str, int]] = []
        for name in found:
            with suppress(FileNotFoundError), _closed_file(self._folder / name) as status:
                if status is None:
                    total += self.longest
                elif status.st_mtime < oldest:
                    self._remove(name)
                else:
                    total += status.st_size
                    closed.append((name, status.st_size))
        for name, size in closed:
            if total <= self._most_bytes:
                break
            self._remove(name)
            total -= size
        return total <= self._most_bytes

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another process was faster, and counts it
            (self._folder / name).unlink()
            self.removed += 1


@contextmanager
def _closed_file(path: Path) -> Iterator[os.stat_result | None]:
    """The status of a file that no process writes to, which holds within the block; None if one does."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        except OSError:
            yield os.fstat(file)  # there are no locks here
        else:
            yield os.fstat(file)
    finally:
        os.close(file)
