"""The processes and shared memory of a local server, from /proc and /dev/shm."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import MappingProxyType

from loadtest.local_server import LocalServer

ONE_THREAD = MappingProxyType({"POLYHEAD_THREADS": "1"})  # enough for tiny models; tests share the machine


def model_processes(server: LocalServer) -> list[int]:
    """The ids of Triton's Python model processes that descend from the server."""
    return [pid for pid in descendants(server.process.pid) if b"python_backend_stub" in command_line(pid)]


def shared_memory(server: LocalServer) -> list[Path]:
    """The server's shared memory regions."""
    return sorted(Path("/dev/shm").glob(f"polyhead_{server.process.pid}_*"))


def run_name(server: LocalServer) -> str:
    """The name with which the files of the server's run start."""
    name = re.match(r"polyhead_[0-9]+_[0-9a-f]{16}", shared_memory(server)[0].name)
    assert name is not None
    return name[0]


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


def command_line(pid: int) -> bytes:
    """A process's command line; empty if it has ended or is a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
