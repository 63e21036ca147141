"""tritonserver as a process group: starts it, reads its log, drains it, ends it and everything that belongs to it."""

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
from pathlib import Path
from typing import IO, NamedTuple

from polyhead_serving.connections import block_new_connections, client_states, close_idle_connections
from polyhead_serving.hidden_arguments import start_hidden
from polyhead_serving.log_lines import pass_on
from polyhead_serving.orphans import backends_folder, readable_regions, remove_regions
from polyhead_serving.private_files import keep_files_private
from polyhead_serving.triton import (
    ServeOptions,
    TritonInstall,
    restrictions,
    server_command,
    server_environment,
    uses_gpu,
)

log = logging.getLogger("polyhead_serving")

MAX_ERRORS_KEPT = 10
MODEL_PROCESS = "triton_python_b"  # the kernel keeps 15 characters of triton_python_backend_stub
# A model process that Triton ends itself is a zombie with exit code 0 for milliseconds. One that died stays a zombie.
DEAD_AFTER_S, ENDED_AFTER_S = 0.2, 2.0
# The stack of each thread; only what is used takes memory. Triton parses JSON by recursion: with 8 MiB, 64 KB of nested
# "[" end it; with 64 MiB, it survives what the proxy (deploy/nginx) lets through.
STACK_BYTES = 64 * 2**20
DRAIN_REPORT_S = 5.0
# So long, a drain also waits for clients that have closed their side: some still read. Triton may never close its side.
HALF_CLOSED_S = 10.0
FILES = 65_536  # a soft limit of 1,024 would be less than the connections that the proxy may open
DRAINED_CHECKS = 3  # how often in a row, 0.1 s apart, the server must look drained: the last answers have left then
KEY_NOT_HIDDEN = (
    "the kernel does not let the supervisor hide POLYHEAD_ADMIN_KEY, and every user of this machine could read it in "
    "tritonserver's command line: the APIs that it opens stay closed, and polyhead-deploy cannot change this server. "
    "Allow ptrace of one's own children, or restart the server to change the model"
)
NOT_PRIVATE = "the kernel forbids seccomp filters here; run the server where no other user is"
ACCEPT_S = 0.1  # for connections that the kernel has accepted and Triton has not
# Triton logs these at every start without a GPU, where they mean nothing.
CPU_NOISE = ("CudaDriverHelper has not been initialized", "Unable to allocate pinned system memory")

_ERROR_LINE = re.compile(r'^E\d{4} \S+ \d+ \S+\] "?(?:ERROR: )?(?:Failed to create instance: )?(.*?)"?$')
_PR_SET_PDEATHSIG = 1


class ServerProcess:
    """tritonserver in its own process group.

    Args:
        options: what to serve, and how long a drain may take.
        install: the tritonserver to run.
        run: the run's name; the names of its shared-memory regions start with it.
        key: opens the admin APIs; None: nothing opens them.
    """

    def __init__(self, options: ServeOptions, install: TritonInstall, run: str, key: str | None) -> None:
        self._options = options
        self._install = install
        self._run = run
        self._key = key
        self._muted = () if uses_gpu(options) else CPU_NOISE
        self._zombies: dict[int, float] = {}  # when each was first seen
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._errors: list[str] = []

    def start(self) -> None:
        """Starts the process; raises RepositoryError if the repository holds nothing that it could serve."""
        self._errors = []
        self._zombies = {}
        # The server needs no key in its environment, and its model processes, which run users' code, must have none.
        environment = {name: value for name, value in os.environ.items() if name != "POLYHEAD_ADMIN_KEY"}
        hidden = dict(zip(restrictions(None), restrictions(self._key), strict=True)) if self._key else {}
        self._process, is_hidden = start_hidden(
            server_command(self._options, self._install, backends_folder(self._run), self._run),
            hidden,
            environment | server_environment(self._options, self._install, environment),
            _prepare,  # makes system calls only and takes no lock
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )
        if not is_hidden:
            log.error(KEY_NOT_HIDDEN)
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def explain_exit(self) -> str:
        """Why it ended: its first error line, without Python's traceback."""
        if self._reader is not None:
            self._reader.join(timeout=2)
        if not self._errors:
            return f"tritonserver ended with code {self.exit_code}"
        return self._errors[0].partition("\\n\\nAt:")[0].removeprefix("TritonModelException: ")

    def is_broken(self) -> bool:
        """Whether the server or a model process has ended. Any thread may call this."""
        process = self._process
        if process is None or process.poll() is not None:
            return True
        return any(model.state == "Z" for model in _model_processes(process.pid))

    def dead_model_process(self) -> str | None:
        """How a model process died that Triton has not reaped and will never restart, or None."""
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

    def drain(self) -> bool:
        """Lets the server answer what it has accepted, then ends it; returns False if the time was not enough."""
        code: int | None = 0
        process, options = self._process, self._options
        if process is not None and process.poll() is None:
            if not block_new_connections(process.pid, options.http_port):
                log.warning(
                    "the kernel forbids access to the server's connections: open connections will delay the exit"
                )
            time.sleep(ACCEPT_S)
            process.terminate()
            # Triton waits for all connections to end, also for idle ones.
            deadline = time.monotonic() + options.exit_timeout_s + 5
            next_report = time.monotonic() + DRAIN_REPORT_S
            half_closed_until = time.monotonic() + HALF_CLOSED_S
            drained = 0
            while (code := process.poll()) is None and time.monotonic() < deadline:
                close_idle_connections(process.pid, options.http_port)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                # The model processes end when everything is answered. After that, gRPC answers NOT_FOUND for seconds,
                # which no client understands as "shutting down". And if a batch failed as a whole, for example because
                # shared memory was full, Triton waits for its requests until the timeout. So it is done when all
                # clients have left.
                models = _model_processes(process.pid)
                clients = client_states(process.pid, options.http_port, options.grpc_port)
                is_asked = clients["ESTABLISHED"] if time.monotonic() > half_closed_until else clients
                drained = 0 if models and is_asked else drained + 1
                if time.monotonic() >= next_report:
                    next_report += DRAIN_REPORT_S
                    log.info("still stopping: %d model processes, connections %s", len(models), dict(clients))
                if drained > DRAINED_CHECKS:
                    code = 0
                    break
        self.kill()
        # A negative code is a signal: Triton crashes when its exit timeout ends under requests. A positive code means
        # that the timeout ended with idle connections only.
        return code is not None and code >= 0

    def check_regions(self) -> None:
        """Logs an error if other users can read the shared memory of the running server."""
        if regions := readable_regions(self._run):
            log.error("every user of this machine can read texts in %s: %s", ", ".join(map(str, regions)), NOT_PRIVATE)

    def kill(self) -> None:
        """Kills the whole group and removes its shared memory."""
        if self._process is None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        _wait_for_group(group, timeout_s=5)
        self._process = None
        remove_regions(self._run)

    def _read_log(self, lines: IO[str]) -> None:
        for line in lines:
            if any(part in line for part in self._muted):
                continue
            pass_on(line, self._options.log_format)
            # The first errors name the cause. The list must not grow for months.
            if len(self._errors) < MAX_ERRORS_KEPT and (error := _ERROR_LINE.match(line)):
                self._errors.append(error[1])


class _ModelProcess(NamedTuple):
    """A child of Triton: its state as the kernel names it (Z: it has ended), and its wait status."""

    pid: int
    state: str
    status: int


def _model_processes(server: int) -> list[_ModelProcess]:
    """The model processes that Triton has started and not reaped."""
    found = []
    with contextlib.suppress(OSError):  # it has just ended, or no file can be opened now
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
    """STACK_BYTES, or this machine's hard limit if that is lower."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    return STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)


def _prepare() -> None:
    resource.setrlimit(resource.RLIMIT_STACK, (stack_bytes(), resource.getrlimit(resource.RLIMIT_STACK)[1]))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if most == resource.RLIM_INFINITY else min(FILES, most), most))
    # A dump of the memory would put texts on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    keep_files_private()
    # If the supervisor is killed, the server must end too and free its ports.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for_group(group: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            # As a container's first process, the supervisor inherits orphans and must reap them.
            os.waitpid(-group, os.WNOHANG)
        if not _has_living(group):
            return
        time.sleep(0.05)


def _has_living(group: int) -> bool:
    """Whether a process of the group still runs. Zombies do not; only their parent can remove them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                return True
    return False
