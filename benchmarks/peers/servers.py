"""The peers' servers: how each is started, asked, and ended together with the processes that it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.load import Connect, json_sender
from loadtest.local_server import ROOT
from polyhead.engine import fastest_precision

PEERS = ROOT / ".venv-peers"
INFINITY = ROOT / ".venv-infinity"
START_S = 300.0
# Idle OpenMP threads sleep, as in our model process (docs/decisions/0004-passive-threads.md).
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class PeerServer:
    """Another project's server.

    Attributes:
        name: its name in the results.
        executable: the program that runs it.
        arguments: returns the program's arguments for a model folder, a port and a device.
        path: where it takes requests.
        body: returns a request's JSON.
        batches: configurations, as options; the fastest one is measured.
    """

    name: str
    executable: Path
    arguments: Callable[[Path, int, str], list[str]]
    path: str
    body: Callable[[list[str]], dict[str, Any]]
    batches: tuple[tuple[str, ...], ...]

    def settings(self, device: str) -> list[tuple[str, ...]]:
        """Each configuration in fp32, and in bf16 if the device is fast at it; elsewhere a text takes minutes."""
        quick = fastest_precision(torch.device(device)) == "bf16"
        dtypes = ("float32", "bfloat16") if quick else ("float32",)
        return [("--dtype", dtype, *batch) for dtype in dtypes for batch in self.batches]

    @contextmanager
    def serving(self, model: Path, device: str, setting: tuple[str, ...]) -> Iterator[Connect]:
        """Starts the server, waits until it answers, and yields a function that connects to it.

        Raises:
            RuntimeError: the server ended or did not answer in time; the message has the end of its log.
        """
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command: list[str | Path] = [self.executable, *self.arguments(model, port, device), *setting]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                connect = json_sender(port, self.path, self.body)
                if not _answers(process, connect):
                    log.seek(0)
                    raise RuntimeError(f"{self.name} did not start:\n{log.read()[-3000:]}")
                yield connect
            finally:
                _end(process)


def _answers(process: subprocess.Popen[bytes], connect: Connect) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with connect() as send:
                send(["a canary"])
            return True
        except (OSError, RuntimeError):
            time.sleep(0.5)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    # Workers are processes of the same group, and some outlive SIGTERM to their server.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        time.sleep(2)
    process.wait()


def _fastapi(model: Path, port: int, device: str) -> list[str]:
    script = str(Path(__file__).with_name("fastapi_server.py"))
    return [script, "--model", str(model), "--port", str(port), "--device", device]


def _infinity(model: Path, port: int, device: str) -> list[str]:
    return [
        "v2", "--model-id", str(model), "--served-model-name", "peer", "--engine", "torch", "--device", device,
        "--host", "127.0.0.1", "--port", str(port), "--no-bettertransformer", "--no-model-warmup",
    ]  # fmt: skip


PEER_SERVERS = (
    PeerServer("fastapi", PEERS / "bin" / "python", _fastapi, "/predict", lambda texts: {"text": texts[0]}, ((),)),
    PeerServer(
        "infinity", INFINITY / "bin" / "infinity_emb", _infinity, "/classify",
        lambda texts: {"model": "peer", "input": texts},
        (("--batch-size", "8"), ("--batch-size", "16")),
    ),
)  # fmt: skip
