"""tritonserver as a process group: started, listened to, ended with nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

SHARED_MEMORY = Path("/dev/shm")
ERRORS_KEPT = 10
EXIT_TIMEOUT_S = 5  # Triton waits that long for idle keep-alive connections, too
# Triton logs these on every start without a GPU, where they mean nothing.
CPU_NOISE = ("CudaDriverHelper has not been initialized", "Unable to allocate pinned system memory")

_ERROR_LINE = re.compile(r'^E\d{4} \S+ \d+ \S+\] "?(?:ERROR: )?(?:Failed to create instance: )?(.*?)"?$')
_PR_SET_PDEATHSIG = 1


class ServerProcess:
    """tritonserver in a process group of its own.

    Args:
        command: with its arguments.
        environment: the whole of it.
        shm_prefix: how the names of its shared-memory regions start; what is left of them is removed.
        muted: lines that contain one of these are not passed on.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        shm_prefix: str,
        muted: Sequence[str] = (),
    ) -> None:
        self._command = command
        self._environment = environment
        self._shm_prefix = shm_prefix
        self._muted = muted
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._errors: list[str] = []

    def start(self) -> None:
        """Starts the process; its lines are passed on to stderr."""
        self._errors = []
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
            preexec_fn=_die_with_parent,  # one call into the kernel, which takes no lock
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._pass_on, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def explain_exit(self) -> str:
        """Why it ended: the first of its own error lines names the cause; without Python's traceback."""
        if self._reader is not None:
            self._reader.join(timeout=2)
        if not self._errors:
            return f"tritonserver ended with code {self.exit_code}"
        return self._errors[0].partition("\\n\\nAt:")[0].removeprefix("TritonModelException: ")

    def stop(self) -> None:
        """Lets it finish what is in flight, then removes every trace of it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT_S + 5)
        self.kill()

    def kill(self) -> None:
        """Ends the whole group at once and removes its shared memory."""
        if self._process is None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        _wait_for_group(group, timeout_s=5)
        self._process = None
        for region in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)

    def _pass_on(self, lines: IO[str]) -> None:
        for line in lines:
            if any(part in line for part in self._muted):
                continue
            sys.stderr.write(line)
            # The first few name the cause; a server that logs errors for months must not grow this list.
            if len(self._errors) < ERRORS_KEPT and (error := _ERROR_LINE.match(line)):
                self._errors.append(error[1])


def _die_with_parent() -> None:
    # If the supervisor is killed, the server must not stay behind and hold the ports.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for_group(group: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            # As a container's first process we inherit its orphans and must reap them.
            os.waitpid(-group, os.WNOHANG)
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
