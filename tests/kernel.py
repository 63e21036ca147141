"""What the operating system of this machine permits tests to do."""

from __future__ import annotations

import ctypes
import os

PIDFD_GETFD = 438


def lets_reach_into_processes() -> bool:
    """Whether a process may take sockets of another process; a container's seccomp profile may forbid it."""
    process = os.pidfd_open(os.getpid())
    try:
        number = ctypes.CDLL(None).syscall(PIDFD_GETFD, process, 0, 0)
    finally:
        os.close(process)
    if number >= 0:
        os.close(number)
    return number >= 0
