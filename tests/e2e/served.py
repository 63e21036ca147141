"""A polyhead-serve of the server environment, as a process that tests start, look into and end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / os.environ.get("POLYHEAD_TRITON_VENV", ".venv-triton")
READY_TIMEOUT_S = 120
ONE_THREAD = MappingProxyType({"POLYHEAD_THREADS": "1"})  # tests run beside others, and tiny models need no more


def serve_command() -> list[str]:
    """How the server environment runs polyhead-serve; fails, never skips, where that environment is missing."""
    python = VENV / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{VENV}: the server's environment is missing; run `make test`, which makes it", pytrace=False)
    return [str(python), "-m", "polyhead_serving.serve"]


def free_ports() -> dict[str, int]:
    """Four ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return dict(zip(("http", "grpc", "metrics", "probe"), ports, strict=True))


def port_options(ports: dict[str, int]) -> list[str]:
    """The command line's way to say them."""
    return [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]


class Served:
    """polyhead-serve over a repository.

    Args:
        environment: what it has beside this process's.
        wrapper: a command that replaces itself by the one that follows it, such as ``unshare``.

    Attributes:
        repository: what it serves.
        ports: by protocol.
        lines: what it has printed so far, stdout and stderr.
    """

    def __init__(
        self,
        repository: Path,
        *options: str,
        environment: Mapping[str, str] = ONE_THREAD,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.repository = repository
        self.ports = free_ports()
        arguments = ["--repository", str(repository), *port_options(self.ports), *options]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*wrapper, *serve_command(), *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Served:
        """Itself, once it is ready."""
        try:
            self.wait_until_ready(times=1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it in any case."""
        if self.process.poll() is None:
            self.end(signal.SIGTERM)
        self._reader.join(5)
        self.process.stdout.close()

    def url(self, protocol: str) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.ports[protocol]}"

    def wait_until_ready(self, times: int) -> None:
        """Waits for the line ``ready …`` to have been printed so many times."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.times_ready() < times:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{''.join(self.lines)}"
            assert time.monotonic() < deadline, f"not ready in {READY_TIMEOUT_S} s:\n{''.join(self.lines)}"
            time.sleep(0.05)

    def times_ready(self) -> int:
        """How often it has become ready so far."""
        return sum("ready http=" in line for line in self.lines)

    def end(self, number: signal.Signals) -> int:
        """Sends the signal and gives the exit code; kills it if it does not end."""
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def model_processes(self) -> list[int]:
        """The ids of Triton's Python model processes that descend from it."""
        return [pid for pid in descendants(self.process.pid) if b"python_backend_stub" in command_line(pid)]

    def shared_memory(self) -> list[Path]:
        """Its regions."""
        return sorted(Path("/dev/shm").glob(f"polyhead_{self.process.pid}_*"))

    def _read(self) -> None:
        self.lines.extend(iter(self.process.stdout.readline, ""))


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


def command_line(pid: int) -> bytes:
    """A process's command line, empty when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def infer_json(http: str, body: dict[str, Any] | bytes) -> tuple[int, dict[str, Any]]:
    """Sends a body as curl would and gives status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{http}/v2/models/gpt2_classifier/infer", data)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def json_body(texts: list[str], outputs: list[str], **parameters: Any) -> dict[str, Any]:
    """An inference request in Triton's JSON."""
    return {
        "parameters": parameters,
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}],
        "outputs": [{"name": name} for name in outputs],
    }
