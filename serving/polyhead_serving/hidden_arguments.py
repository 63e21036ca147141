"""Starts a program with arguments that only its own user can read.

Every user of a machine can read the command line of every process in /proc. Here the command line shows a harmless
argument. Before the program's first instruction, the pointer to it is set to a string in the program's environment,
which only its user can read. So the secret is never in the command line, not even for a moment.

This needs ptrace of one's own child. If the kernel forbids it, the program gets the argument that is shown.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

VARIABLE = "POLYHEAD_HIDDEN_ARGUMENT_"
_TRACEME, _DETACH = 0, 17
_START_STACK = 25  # position of the stack's first address in /proc/PID/stat, after the program's name
_WORD = struct.calcsize("P")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def start_hidden(
    command: Sequence[str],
    hidden: Mapping[str, str],
    env: Mapping[str, str],
    prepare: Callable[[], None],
    **options: Any,
) -> tuple[subprocess.Popen[str], bool]:
    """Starts a program.

    Args:
        command: its command line, as every user sees it.
        hidden: for arguments of `command`, what the program reads in their place.
        env: its environment.
        prepare: called in the new process before the program starts.
        options: further options of Popen.

    Returns:
        The process, and whether it reads the hidden arguments. If not, it reads those that `command` shows.
    """
    # The last variables, in this order: so `_redirect` finds them without reading names.
    secrets = [f"{VARIABLE}{number}={text}" for number, text in enumerate(hidden.values())]
    variables = {**env, **dict(secret.split("=", 1) for secret in secrets)}

    def prepare_child() -> None:
        prepare()
        if hidden:
            _libc.ptrace(_TRACEME, 0, None, None)  # from now on, exec stops the process before its first instruction

    process = subprocess.Popen(command, env=variables, preexec_fn=prepare_child, **options)
    try:
        return process, not hidden or _hide(process.pid, command, list(hidden), secrets, len(variables))
    except BaseException:
        process.kill()
        process.wait()
        raise


def _hide(pid: int, command: Sequence[str], shown: Sequence[str], secrets: Sequence[str], variables: int) -> bool:
    """Redirects the arguments of a process that has just been started, and lets it run."""
    if not _is_traced_here(pid):
        return False
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise ChildProcessError(f"process {pid} ended before its program started")
    try:
        return _redirect(pid, command, shown, secrets, variables)
    except (OSError, struct.error):  # another user's process, or memory that the kernel does not show
        return False
    finally:
        number = os.WSTOPSIG(status)
        _libc.ptrace(_DETACH, pid, None, None if number == signal.SIGTRAP else number)


def _is_traced_here(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return f"TracerPid:\t{threading.get_native_id()}" in lines


def _redirect(pid: int, command: Sequence[str], shown: Sequence[str], secrets: Sequence[str], variables: int) -> bool:
    # A new program's stack: the number of arguments, their addresses, 0, the addresses of the environment, 0.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    stack = int(fields[_START_STACK])
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        # A script's interpreter, and one argument of it, may stand before the script's name.
        interpreter = min(max(_read_words(memory, stack, 1)[0] - len(command), 0), 2)
        command = ["", ""][:interpreter] + list(command)
        arguments = stack + _WORD
        environment = arguments + (len(command) + 1) * _WORD
        count, *words = _read_words(memory, stack, 1 + len(command) + 1 + variables + 1)
        if (count, words[len(command)], words[-1]) != (len(command), 0, 0):
            return False
        first = words[len(command) + 1]
        places = words[-1 - len(secrets) : -1]
        if any(_read_text(memory, place, secret) != secret for place, secret in zip(places, secrets, strict=True)):
            return False
        for number, (text, place) in enumerate(zip(shown, places, strict=True)):
            _write_word(memory, arguments + command.index(text) * _WORD, place + len(f"{VARIABLE}{number}="))
            # The program's own children must not inherit the variable: its entry becomes a copy of the first one.
            _write_word(memory, environment + (variables - len(secrets) + number) * _WORD, first)
    return True


def _read_words(memory: BinaryIO, address: int, count: int) -> tuple[int, ...]:
    memory.seek(address)
    return struct.unpack(f"{count}P", memory.read(count * _WORD))


def _read_text(memory: BinaryIO, address: int, like: str) -> str:
    memory.seek(address)
    return memory.read(len(os.fsencode(like))).decode("utf-8", "replace")


def _write_word(memory: BinaryIO, address: int, value: int) -> None:
    memory.seek(address)
    memory.write(struct.pack("P", value))
