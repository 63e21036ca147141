"""Arguments that a program reads and that no other user sees."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from polyhead_serving.hidden_arguments import start_hidden
from tests.kernel import WITHOUT_PTRACE
from tests.other_user import run_as_nobody, started_as_nobody

SECRET = "a-secret-of-this-test"
SHOWN = ("--first=shown", "--second=shown")
HIDDEN = {SHOWN[0]: f"--first={SECRET}", SHOWN[1]: f"--second={SECRET}"}
PRINTS = ("sh", "-c", 'echo "$0 $1"; env')
WAITS = ("sh", "-c", "read line", *SHOWN)
READS_ALL = """
import os, sys
secret = sys.argv[1][::-1].encode()  # reversed, so that this process does not find itself
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("cmdline", "environ"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                if secret in file.read():
                    print(pid, name)
        except OSError:
            pass
"""
WATCHES = """
import os, sys
print("watching", flush=True)
seen = set()
while not os.path.exists(sys.argv[1]):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                seen.update(word.decode() for word in file.read().split(b"\\0") if word.startswith(b"--first="))
        except OSError:
            pass
print(*sorted(seen), flush=True)
"""


def start(*command: str) -> tuple[subprocess.Popen[str], bool]:
    """Starts a program with the hidden arguments."""
    environment = {"PATH": os.environ["PATH"], "LANG": "C"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return start_hidden(command, HIDDEN, environment, lambda: None, **pipes)


def test_the_program_reads_the_hidden_arguments() -> None:
    """It reads them instead of those that its command line shows; its children do not inherit them."""
    process, is_hidden = start(*PRINTS, *SHOWN)
    lines = process.communicate(timeout=10)[0].splitlines()
    assert is_hidden
    assert lines[0] == f"--first={SECRET} --second={SECRET}"
    assert "LANG=C" in lines
    assert not [line for line in lines[1:] if SECRET in line]
    assert process.returncode == 0


def test_other_users_see_only_the_shown_arguments() -> None:
    """Another user finds the secret neither in a command line nor in an environment."""
    process, is_hidden = start(*WAITS)
    try:
        assert is_hidden
        assert Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[3:5] == [word.encode() for word in SHOWN]
        assert SECRET.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()  # its own user may read it
        assert run_as_nobody(READS_ALL, SECRET[::-1]) == ""
    finally:
        process.communicate("\n", timeout=10)


def test_no_moment_shows_the_secret() -> None:
    """A user who reads all command lines again and again, while many programs start, never finds it."""
    stop = Path(tempfile.gettempdir()) / f"polyhead-test-stop-{os.getpid()}"
    with started_as_nobody(WATCHES, str(stop)) as watcher:
        try:
            for _ in range(30):
                process, is_hidden = start(*WAITS)
                assert is_hidden
                process.communicate("\n", timeout=10)
        finally:
            stop.touch()
        assert watcher.stdout is not None
        values = watcher.stdout.readline().split()
        stop.unlink()
    assert values == [SHOWN[0]]


def test_a_kernel_that_forbids_ptrace() -> None:
    """Then the program reads what its command line shows."""
    program = f"""
import os, subprocess
from polyhead_serving.hidden_arguments import start_hidden
process, is_hidden = start_hidden({[*PRINTS, *SHOWN]}, {HIDDEN}, dict(PATH=os.environ["PATH"]), lambda: None)
process.wait()
print(is_hidden)
"""
    command = [*WITHOUT_PTRACE, sys.executable, "-c", program]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    assert lines[0] == " ".join(SHOWN)
    assert lines[-1] == "False"


def test_a_program_that_cannot_start() -> None:
    """A missing program is an error as without hidden arguments, and leaves no process."""
    with pytest.raises(FileNotFoundError):
        start("/nonexistent/program", *SHOWN)


def test_nothing_is_hidden_without_hidden_arguments() -> None:
    """Then the program is not traced at all, so it starts also where ptrace is forbidden."""
    process, is_hidden = start_hidden(("true",), {}, {"PATH": os.environ["PATH"]}, lambda: None, text=True)
    assert is_hidden
    assert process.wait(10) == 0


def test_it_starts_from_any_thread() -> None:
    """The kernel's tracer is a thread, not a process."""
    found: list[bool] = []

    def run() -> None:
        process, is_hidden = start(*PRINTS, *SHOWN)
        process.communicate(timeout=10)
        found.append(is_hidden)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert found == [True]


def test_the_program_runs_on_untraced() -> None:
    """After the start nothing traces the process, so that debuggers and signals work as usual."""
    process, _ = start(*WAITS)
    try:
        deadline = time.monotonic() + 10
        while "TracerPid:\t0" not in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
        process.terminate()
        assert process.wait(10) == -15
    finally:
        process.kill()
        process.communicate()
