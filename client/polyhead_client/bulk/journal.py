"""What is known of a job before it is finished: a folder beside the output with one answer a row, in the rows' order.

The log is only ever appended to, so that a killed job loses no more than about a second's answers; its unfinished last
line is cut off when the job goes on. The input's own columns are not in it: they are read again for the output.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from polyhead_client.errors import PolyheadClientError, UsageError
from polyhead_client.prediction import Prediction

FLUSH_S = 1.0  # how often answers are forced to disk
MANIFEST, LOG, LOCK = "manifest.json", "answers.jsonl", "lock"


class Journal:
    """The journal of one job, held by one process at a time.

    Args:
        folder: made if it is not there.
        job: what decides the answers; a journal of another job is refused.
        restart: drops what is there.

    Attributes:
        rows: answers in the log.

    Raises:
        UsageError: another job's journal, or another process works on it.
    """

    def __init__(self, folder: Path, job: dict[str, Any], restart: bool = False) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._lock = (folder / LOCK).open("ab")
        try:
            _lock(self._lock, folder)
            if restart:
                for name in (MANIFEST, LOG):
                    (folder / name).unlink(missing_ok=True)
            self._check(job)
            self._log = (folder / LOG).open("r+b" if (folder / LOG).exists() else "w+b")
        except BaseException:
            self._lock.close()
            raise
        self.rows = _cut_to_whole_lines(self._log)
        self._flushed = time.monotonic()

    def append(self, prediction: Prediction) -> None:
        """The next row's answer."""
        self._log.write(json.dumps(prediction.to_json(), separators=(",", ":")).encode() + b"\n")
        self.rows += 1
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Forces what was appended to disk."""
        self._log.flush()
        os.fsync(self._log.fileno())
        self._flushed = time.monotonic()

    def answers(self) -> Iterator[Prediction]:
        """All answers, one a row."""
        self.flush()
        with (self.folder / LOG).open("rb") as log:
            for line in log:
                try:
                    yield Prediction.from_json(line)
                except PolyheadClientError as error:
                    raise UsageError(f"{self.folder} is damaged ({error}); begin anew with --restart") from error

    def remove(self) -> None:
        """Deletes it, and the folder if nothing else is in it."""
        self.close()
        for name in (LOG, MANIFEST, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def close(self) -> None:
        """Leaves it for the next run."""
        if not self._log.closed:
            self.flush()
            self._log.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, job: dict[str, Any]) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            (self.folder / LOG).unlink(missing_ok=True)
            write_whole(path, json.dumps(job, indent=2).encode())
            return
        try:
            known = json.loads(path.read_bytes())
        except ValueError as error:
            raise UsageError(f"{path} is damaged; begin anew with --restart") from error
        differs = [name for name in job if known.get(name) != json.loads(json.dumps(job[name]))]
        if differs:
            raise UsageError(
                f"{self.folder} holds a part of another job: {', '.join(differs)} differs; "
                "repeat the command that began it, or begin anew with --restart"
            )


def write_whole(path: Path, data: bytes) -> None:
    """A file that is there as a whole or not at all."""
    staged = path.with_name(path.name + ".tmp")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: the user sees to it
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(f"another process works on {folder}") from error


def _cut_to_whole_lines(log: BinaryIO) -> int:
    rows = whole = 0
    for line in log:
        # A machine that lost its power may leave zeros behind.
        if not (line.startswith(b"{") and line.endswith(b"}\n")):
            break
        rows += 1
        whole += len(line)
    log.seek(whole)
    log.truncate()
    return rows
