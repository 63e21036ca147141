"""The second half of ``make demo``: serve the exported checkpoint, classify, load-test, stop, and sum up."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from polyhead_client import Client, MultiLabel, Prediction, SingleLabel

ROOT = Path(__file__).resolve().parents[1]
PORTS = ("http", "grpc", "metrics", "probe")
CHECKPOINT = ROOT / "runs" / "debian"
SERVER_PYTHON = ROOT / ".venv-triton" / "bin" / "python"
LOAD_SECONDS = 20
START_SECONDS = 120
LOAD_USERS = 8

TEXTS = [
    "Fast-paced arcade shooter in which you defend a space station from waves of alien ships.",
    "Python bindings for a library that reads and writes compressed scientific data sets.",
    "Documentation of the HTTP server: user manual and API reference as HTML pages.",
    "Shared library that decodes audio streams. This package contains the development files and headers.",
    "Command line tool that shows which process listens on which network port.",
]

console = Console(highlight=False)


def main() -> int:
    """Runs the steps; the exit code is the load test's."""
    ports = _ports()
    url = f"localhost:{ports[0]}"
    with _server(ports), tempfile.TemporaryDirectory() as scratch:
        with Client(url) as client:
            console.print(_answers(client.classify(TEXTS)))
        summary = Path(scratch) / "load.json"
        console.print(f"\nLoad: {LOAD_USERS} users for {LOAD_SECONDS} s; every answer is compared with golden.jsonl")
        code = subprocess.run(
            [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--host", f"http://{url}",
             "-u", str(LOAD_USERS), "-t", f"{LOAD_SECONDS}s", "--golden", str(CHECKPOINT / "golden.jsonl"),
             "--metrics-url", f"http://localhost:{ports[2]}/metrics", "--summary", str(summary)],
            cwd=ROOT, check=False,
        ).returncode  # fmt: skip
        load = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    _sum_up(json.loads((CHECKPOINT / "metrics.json").read_text(encoding="utf-8")), load)
    return code


@contextmanager
def _server(ports: list[int]) -> Iterator[None]:
    console.print("\nStarting tritonserver on loopback ...")
    log = tempfile.NamedTemporaryFile("w+", prefix="polyhead-serve-", suffix=".log", delete=False)  # noqa: SIM115 -- kept if it fails
    command = [SERVER_PYTHON, "-m", "polyhead_serving.serve", "--repository", ROOT / "model_repository"]
    command += [f"--{name}-port={port}" for name, port in zip(PORTS, ports, strict=True)]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        with Client(f"localhost:{ports[0]}") as client:  # an open connection would hold up the server's end
            _wait(server, client, Path(log.name))
        yield
        Path(log.name).unlink()
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
            console.print("Server stopped.")


def _wait(server: subprocess.Popen[bytes], client: Client, log: Path) -> None:
    """Until the server answers; one that has ended is not waited for."""
    deadline = time.monotonic() + START_SECONDS
    with client:
        while not client.is_ready():
            if server.poll() is not None or time.monotonic() > deadline:
                console.print(log.read_text(encoding="utf-8")[-2000:], markup=False)
                sys.exit(f"demo: the server did not start; its whole log is in {log}")
            time.sleep(0.5)


def _ports() -> list[int]:
    """8000 to 8003 if they are free, else four others."""
    try:
        return [_bind(port) for port in range(8000, 8000 + len(PORTS))]
    except OSError:
        return [_bind(0) for _ in PORTS]


def _bind(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])


def _answers(predictions: list[Prediction]) -> Table:
    table = Table("text", *predictions[0].heads, title="Answers", show_lines=True)
    for text, prediction in zip(TEXTS, predictions, strict=True):
        table.add_row(text, *[_cell(answer) for answer in prediction.heads.values()])
    return table


def _cell(answer: Any) -> str:
    match answer:
        case SingleLabel():
            return f"{answer.label} {answer.score:.2f}"
        case MultiLabel():
            return "\n".join(f"{label.label} {label.score:.2f}" for label in answer.labels) or "-"
        case _:
            return f"{answer.value:.2f}"


def _sum_up(metrics: dict[str, Any], load: dict[str, Any]) -> None:
    table = Table("what", "reached", title="Summary", show_header=False)
    table.add_row("training", f"{metrics['training']['seconds']:.0f} s, {metrics['training']['rows']} rows")
    for head, scores in metrics["test"].items():
        # Of a single_label head, micro F1 is its accuracy.
        shown = ("accuracy" if "accuracy" in scores else "micro_f1", "macro_f1")
        values = "  ".join(f"{name} {scores[name]:.3f}" for name in shown)
        table.add_row(f"{head} on the held-out tenth", values)
    if load:
        table.add_row(
            "load", f"{load['texts_s']:.0f} texts/s, p50 {load['p50_ms']:.0f} ms, p95 {load['p95_ms']:.0f} ms"
        )
        table.add_row("answers checked", f"{load['texts']}, mismatches {load['mismatches']}, errors {load['errors']}")
    console.print(table)
    console.print(
        "Next:\n"
        "  make serve                                     # serve it until Ctrl-C\n"
        '  .venv/bin/polyhead-client classify "Board game for two players"   # in another terminal\n'
        "  .venv/bin/polyhead-train --example > my.toml   # a model of your own: edit, then polyhead-train my.toml",
        soft_wrap=True,
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
