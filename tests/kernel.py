"""What the operating system of this machine permits tests to do."""

from __future__ import annotations

import ctypes
import os
import sys

PIDFD_GETFD = 438
# Forbids ptrace to itself and to what it starts, as a container's seccomp profile may, and becomes the next command.
_FORBID_PTRACE = """
import ctypes, errno, os, platform, struct, sys

ptrace = {"x86_64": 101, "aarch64": 117}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, ptrace), (0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):
    sys.exit(f"no seccomp filter: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
"""
WITHOUT_PTRACE = (sys.executable, "-c", _FORBID_PTRACE)


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
