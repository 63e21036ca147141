"""tritonserver as a process group: started, listened to, drained, ended with nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from polyhead_serving.connections import close_idle_connections, has_clients, keep_out

log = logging.getLogger("polyhead_serving.serve")

SHARED_MEMORY = Path("/dev/shm")
ERRORS_KEPT = 10
MODEL_PROCESS = "triton_python_b"  # the kernel keeps 15 characters of triton_python_backend_stub
# A model process that Triton ends by itself is a zombie, of exit code 0, for milliseconds; one that died stays one.
DEAD_AFTER_S, ENDED_AFTER_S = 0.2, 2.0
# Of each thread, and only what is used is real. Triton reads JSON by recursion: with 8 MiB, 64 KB of nested "[" end it;
# with 64 MiB, what the proxy lets through (deploy/nginx) cannot.
STACK_BYTES = 64 * 2**20
DONE_LOOKS = 3  # a tenth of a second apart, for the last answers to leave
ACCEPT_S = 0.1  # for connections that the kernel has taken and Triton not yet
# Triton logs these on every start without a GPU, where they mean nothing.
CPU_NOISE = ("CudaDriverHelper has not been initialized", "Unable to allocate pinned system memory")

_ERROR_LINE = re.compile(r'^E\d{4} \S+ \d+ \S+\] "?(?:ERROR: )?(?:Failed to create instance: )?(.*?)"?$')
_PR_SET_PDEATHSIG = 1


class ServerProcess:
    """tritonserver in a process group of its own.

    Args:
        command: gives it, with its arguments, at each start.
        environment: the whole of it.
        shm_prefix: how the names of its shared-memory regions start; what is left of them is removed.
        muted: lines that contain one of these are not passed on.
        pass_on: takes its other lines.
        http_port: whose idle connections are closed when it drains.
        grpc_port: the drain also ends when nobody is connected to either.
        exit_timeout_s: how long a drain may take.
    """

    def __init__(
        self,
        command: Callable[[], Sequence[str]],
        environment: Mapping[str, str],
        shm_prefix: str,
        muted: Sequence[str] = (),
        *,
        pass_on: Callable[[str], None],
        http_port: int,
        grpc_port: int,
        exit_timeout_s: float,
    ) -> None:
        self._command = command
        self._environment = environment
        self._shm_prefix = shm_prefix
        self._muted = muted
        self._pass_on = pass_on
        self._http_port = http_port
        self._grpc_port = grpc_port
        self._exit_timeout_s = exit_timeout_s
        self._zombies: dict[int, float] = {}  # since when
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._errors: list[str] = []

    def start(self) -> None:
        """Starts the process; its lines are passed on."""
        self._errors = []
        self._zombies = {}
        self._process = subprocess.Popen(
            self._command(),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
            preexec_fn=_prepare,  # calls into the kernel, which take no lock
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
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

    def is_broken(self) -> bool:
        """Whether it, or a model process, has ended; safe to ask from any thread."""
        process = self._process
        if process is None or process.poll() is not None:
            return True
        return any(model.state == "Z" for model in _model_processes(process.pid))

    def dead_model_process(self) -> str | None:
        """What became of a model process that Triton has not reaped, or None: it would never start it again."""
        if self._process is None:
            return None
        dead = {process.pid: process.status for process in _model_processes(self._process.pid) if process.state == "Z"}
        now = time.monotonic()
        self._zombies = {pid: self._zombies.get(pid, now) for pid in dead}
        for pid, since in self._zombies.items():
            if now - since >= (DEAD_AFTER_S if dead[pid] else ENDED_AFTER_S):
                number = dead[pid] & 0x7F
                how = f"of {signal.Signals(number).name}" if number else f"with code {dead[pid] >> 8}"
                return f"model process {pid} died {how}"
        return None

    def stop(self) -> bool:
        """Lets it finish what it has accepted, then removes every trace of it; False if it did not finish."""
        code: int | None = 0
        if self._process is not None and self._process.poll() is None:
            if not keep_out(self._process.pid, self._http_port):
                log.warning("the kernel lets nobody reach into the server: connections that stay open hold up its end")
            time.sleep(ACCEPT_S)
            self._process.terminate()
            # Triton waits for connections to end, also for those on which nothing happens.
            deadline = time.monotonic() + self._exit_timeout_s + 5
            done = 0
            while (code := self._process.poll()) is None and time.monotonic() < deadline:
                close_idle_connections(self._process.pid, self._http_port)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.1)
                # Models go when all is answered. Over gRPC it says for seconds more that it has none, which no client
                # takes for a server that is about to leave. And requests whose batch failed as a whole, for want of
                # shared memory, say, it waits for in vain: when all clients have left, nobody else does.
                is_done = not _model_processes(self._process.pid) or not has_clients(
                    self._process.pid, self._http_port, self._grpc_port
                )
                done = done + 1 if is_done else 0
                if done > DONE_LOOKS:
                    code = 0
                    break
        self.kill()
        # Below 0 is a signal: it breaks under requests when its patience with connections ends. Above, they were idle.
        return code is not None and code >= 0

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

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            if any(part in line for part in self._muted):
                continue
            self._pass_on(line)
            # The first few name the cause; a server that logs errors for months must not grow this list.
            if len(self._errors) < ERRORS_KEPT and (error := _ERROR_LINE.match(line)):
                self._errors.append(error[1])


class _ModelProcess(NamedTuple):
    """A child of Triton: its state as the kernel names it (Z: it has ended), and its wait status."""

    pid: int
    state: str
    status: int


def _model_processes(server: int) -> list[_ModelProcess]:
    """Those that Triton has started and not reaped."""
    found = []
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                with contextlib.suppress(OSError):
                    before, _, after = Path(f"/proc/{child}/stat").read_text().rpartition(") ")
                    fields = after.split()
                    if before.partition("(")[2] == MODEL_PROCESS:
                        found.append(_ModelProcess(int(child), fields[0], int(fields[-1])))
    return found


def stack_bytes() -> int:
    """What each of the server's threads may use, within this machine's hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    return STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)


def _prepare() -> None:
    resource.setrlimit(resource.RLIMIT_STACK, (stack_bytes(), resource.getrlimit(resource.RLIMIT_STACK)[1]))
    # If the supervisor is killed, the server must not stay behind and hold the ports.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for_group(group: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            # As a container's first process we inherit its orphans and must reap them.
            os.waitpid(-group, os.WNOHANG)
        if not _has_living(group):
            return
        time.sleep(0.05)


def _has_living(group: int) -> bool:
    """Whether a process of the group still runs; zombies, which only their parent can remove, do not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                return True
    return False
