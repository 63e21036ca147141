"""Rotated files: their bounds, what a crash or a full disk leaves, and several writers in one folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polyhead_serving import rotated_files
from polyhead_serving.rotated_files import RotatedFiles
from tests.full_disk_head import limited

KEEP_S = 1000.0
WRITER = """
import sys
from pathlib import Path
from polyhead_serving.rotated_files import RotatedFiles
files = RotatedFiles(Path(sys.argv[1]), int(sys.argv[3]), 1000.0)
for number in range(int(sys.argv[2])):
    for _ in files.write([b"%s-%06d-%s\\n" % (sys.argv[4].encode(), number, b"x" * 80)]):
        pass
    if number == 10:
        print("begun", flush=True)
"""


def write(files: RotatedFiles, *lines: bytes) -> int:
    """How many of the lines were written."""
    return sum(files.write(lines))


def contents(folder: Path) -> list[bytes]:
    """Of each file, the oldest first."""
    return [file.read_bytes() for file in sorted(folder.glob("*.jsonl"))]


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def test_full_files_are_rotated_and_the_oldest_removed(tmp_path: Path) -> None:
    """A file has at most a 16th of the bound; of 40 files of two lines each, the newest that fit stay, in order."""
    files = RotatedFiles(tmp_path / "log", 16 * 20, KEEP_S)
    for number in range(80):
        assert write(files, b"%09d\n" % number) == 1
        assert size(tmp_path / "log") <= 16 * 20
    found = contents(tmp_path / "log")
    assert len(found) == 16
    assert b"".join(found) == b"".join(b"%09d\n" % number for number in range(48, 80))
    assert files.removed == 24


def test_many_lines_at_once_are_cut_at_files(tmp_path: Path) -> None:
    """One call fills as many files as it needs, and no line is split."""
    files = RotatedFiles(tmp_path / "log", 16 * 25, KEEP_S)
    assert write(files, *(b"%09d\n" % number for number in range(7))) == 7
    assert [len(content) for content in contents(tmp_path / "log")] == [20, 20, 20, 10]
    assert b"".join(contents(tmp_path / "log")).split() == [b"%09d" % number for number in range(7)]


def test_old_files_are_ended_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour the next line begins another file; a file whose last line is too old is removed, nothing else."""
    folder = tmp_path / "log"
    files = RotatedFiles(folder, 1 << 20, KEEP_S)
    write(files, b"first\n")
    monkeypatch.setattr(rotated_files, "ROTATE_S", -1.0)
    files.clean()
    monkeypatch.setattr(rotated_files, "ROTATE_S", 3600.0)
    write(files, b"second\n")
    assert contents(folder) == [b"first\n", b"second\n"]
    (other := folder / "notes.jsonl").write_text("mine")
    first, second, _ = sorted(folder.iterdir())
    for path in (first, second, other):
        os.utime(path, (0, time.time() - KEEP_S - 1))
    monkeypatch.setattr(rotated_files, "CLEAN_EVERY_S", -1.0)
    files.clean()
    assert sorted(folder.iterdir()) == [second, other]  # the second is being written
    assert files.removed == 1


def test_the_last_line_is_whole_after_a_full_disk(tmp_path: Path) -> None:
    """What was written of a line that does not fit is cut off again, and the error is the system's."""
    files = RotatedFiles(tmp_path / "log", 1 << 20, KEEP_S)
    written = []
    with limited(35), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):  # noqa: PT012 - the loop raises
        for count in files.write([b"%09d\n" % number for number in range(7)]):
            written.append(count)
    assert written == [3]
    assert contents(tmp_path / "log") == [b"000000000\n000000001\n000000002\n"]
    assert write(files, b"later\n") == 1
    assert contents(tmp_path / "log")[0].endswith(b"2\nlater\n")


def test_a_full_file_system_is_the_same(tmp_path: Path) -> None:
    """The real thing: /dev/full refuses every write, as a file system without room does."""
    files = RotatedFiles(tmp_path / "log", 1 << 20, KEEP_S)
    files._folder.mkdir()
    files._file, files._opened = os.open("/dev/full", os.O_WRONLY), time.monotonic()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write(files, b"first\n")
    files.close()
    assert write(files, b"second\n") == 1


def test_a_removed_file_is_noticed(tmp_path: Path) -> None:
    """Whoever deletes the log does so without a restart: the next lines go into a new file."""
    files = RotatedFiles(tmp_path / "log", 1 << 20, KEEP_S)
    write(files, b"first\n")
    for file in (tmp_path / "log").iterdir():
        file.unlink()
    (tmp_path / "log").rmdir()
    assert write(files, b"second\n") == 1
    assert contents(tmp_path / "log") == [b"second\n"]


def test_files_of_living_writers_are_not_removed(tmp_path: Path) -> None:
    """Open files count with all the room that they may take; if nothing else can be removed, a newcomer is refused."""
    folder = tmp_path / "log"
    writers = [RotatedFiles(folder, 16 * 20, KEEP_S) for _ in range(17)]
    for number, files in enumerate(writers[:16]):
        assert write(files, b"%09d\n" % number) == 1
    with pytest.raises(OSError, match="files that others write to"):
        write(writers[16], b"x\n")
    assert len(contents(folder)) == 16
    writers[0].close()
    assert write(writers[16], b"x\n") == 1
    assert len(contents(folder)) == 16
    assert writers[16].removed == 1


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    """After kill -9 its file ends with at most one partial line, is no longer locked, and its room can be freed."""
    folder = tmp_path / "log"
    command = [sys.executable, "-c", WRITER, str(folder), "100000000", str(1 << 24), "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)
    lines = b"".join(contents(folder)).split(b"\n")
    assert len(lines) > 10
    assert {len(line) for line in lines[:-1]} == {89}
    files = RotatedFiles(folder, 16 * 20, KEEP_S)
    assert write(files, b"x\n") == 1
    assert b"".join(contents(folder)) == b"x\n"


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Their rotations race: no line is mixed up, the bound holds at any moment, and the newest line is there."""
    folder, bound = tmp_path / "log", 16 * 450  # of five lines each
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), "2000", str(bound), name]) for name in "ab"
    ]
    largest = 0
    while any(process.poll() is None for process in processes):
        sizes = []
        for file in folder.glob("*.jsonl"):
            try:
                sizes.append(file.stat().st_size)
            except FileNotFoundError:
                continue
        largest = max(largest, sum(sizes))
        time.sleep(0.005)
    assert [process.wait() for process in processes] == [0, 0]
    assert largest <= bound
    lines = b"".join(contents(folder)).splitlines()
    assert {len(line) for line in lines} == {89}
    assert any(line[2:8] == b"001999" for line in lines)  # of the process that ended last


def test_two_threads_make_room_at_once(tmp_path: Path) -> None:
    """Two writers that remove the same old files at once count each removed file once between them."""
    folder = tmp_path / "log"
    earlier = RotatedFiles(folder, 16 * 20, KEEP_S)
    write(earlier, *(b"%019d\n" % number for number in range(15)))
    earlier.close()
    both = [RotatedFiles(folder, 16 * 20, KEEP_S) for _ in range(2)]
    start = threading.Barrier(2)

    def run(files: RotatedFiles) -> None:
        start.wait()
        for number in range(20):
            write(files, b"%019d\n" % number)

    threads = [threading.Thread(target=run, args=(files,)) for files in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = len(contents(folder))
    assert 15 + 40 - sum(files.removed for files in both) == left <= 16
