"""A polyhead-serve on loopback, run as a child process: for capacity runs, benchmarks, the demo and tests.

The server runs in its own environment (.venv-triton), so this module imports nothing of it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-triton"
READY_TIMEOUT_S = 120
END_TIMEOUT_S = 45  # the server gives itself up to 35
PORTS = ("http", "grpc", "metrics", "probe")
SHOWN_OUTPUT = 4000  # characters of the server's output in an error


class LocalServerError(Exception):
    """The server cannot be started, or it ended or hung; the message contains the end of its output."""


def serve_command() -> list[str]:
    """The command that runs polyhead-serve in the server's environment.

    Raises:
        LocalServerError: that environment is missing.
    """
    python = VENV / "bin" / "python"
    if not python.exists():
        raise LocalServerError(f"{VENV}: the server's environment is missing; run `make setup`")
    return [str(python), "-m", "polyhead_serving.serve"]


def free_ports() -> dict[str, int]:
    """Four free ports on loopback, one per entry of `PORTS`."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return dict(zip(PORTS, ports, strict=True))


def port_options(ports: Mapping[str, int]) -> list[str]:
    """The ports as options of polyhead-serve."""
    return [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]


class LocalServer:
    """polyhead-serve over a model repository. As a context manager it waits until the server is ready, and ends it.

    Args:
        options: more options of polyhead-serve.
        environment: variables to add to this process's environment.
        wrapper: a command that runs the command that follows it in its own place (exec), such as ``unshare``.
        ports: by protocol; free ports if None.
        command: runs polyhead-serve; that of the server's environment if empty.

    Attributes:
        lines: what the server has printed so far, stdout and stderr.
    """

    def __init__(
        self,
        repository: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        ports: Mapping[str, int] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self.repository = repository
        self.ports = dict(ports or free_ports())
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                *wrapper,
                *(command or serve_command()),
                "--repository",
                str(repository),
                *port_options(self.ports),
                *options,
            ],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> LocalServer:
        """Waits until the server is ready."""
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the server, if it still runs."""
        try:
            if self.process.poll() is None:
                self.end()
        finally:
            self._reader.join(5)
            if self.process.stdout is not None:
                self.process.stdout.close()

    def url(self, protocol: str) -> str:
        """``host:port`` of a protocol in `PORTS`."""
        return f"127.0.0.1:{self.ports[protocol]}"

    def wait_until_ready(self, times: int = 1) -> None:
        """Waits until the server has become ready this many times; it becomes ready again after each restart.

        Raises:
            LocalServerError: the server ended, or it was not ready in time.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.times_ready() < times:
            if self.process.poll() is not None:
                self._reader.join(5)  # its last lines say why
                raise LocalServerError(f"the server ended with {self.process.returncode}:\n{self._last_output()}")
            if time.monotonic() > deadline:
                raise LocalServerError(f"the server was not ready in {READY_TIMEOUT_S} s:\n{self._last_output()}")
            time.sleep(0.05)

    def times_ready(self) -> int:
        """How many times the server has become ready so far."""
        return sum("ready http=" in line for line in self.lines)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code.

        Raises:
            LocalServerError: the server did not end in time, and was killed.
        """
        self.process.send_signal(number)
        try:
            return self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise LocalServerError(
                f"the server did not end in {END_TIMEOUT_S} s after {number.name}:\n{self._last_output()}"
            ) from error

    def _read(self) -> None:
        if self.process.stdout is not None:
            self.lines.extend(iter(self.process.stdout.readline, ""))

    def _last_output(self) -> str:
        return "".join(self.lines)[-SHOWN_OUTPUT:]
