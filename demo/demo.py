"""The second half of ``make demo``: serves the exported checkpoint, classifies texts, load-tests, prints a summary."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.local_server import PORTS, ROOT, LocalServer, LocalServerError
from polyhead_client import Client, MultiLabel, Prediction, SingleLabel

CHECKPOINT = ROOT / "runs" / "debian"
LOAD_SECONDS = 20
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
    console.print("\nStarting tritonserver on loopback ...")
    try:
        with LocalServer(ROOT / "model_repository", ports=_ports()) as server:
            code, load = _use(server)
    except LocalServerError as error:
        sys.exit(f"demo: {error}")
    console.print("Server stopped.")
    _sum_up(json.loads((CHECKPOINT / "metrics.json").read_text(encoding="utf-8")), load)
    return code


def _use(server: LocalServer) -> tuple[int, dict[str, Any]]:
    """Classifies, then load-tests; returns the load test's exit code and summary."""
    url = f"127.0.0.1:{server.ports['http']}"
    with tempfile.TemporaryDirectory() as scratch:
        with Client(url) as client:
            console.print(_answers(client.classify(TEXTS)))
        summary = Path(scratch) / "load.json"
        console.print(f"\nLoad: {LOAD_USERS} users for {LOAD_SECONDS} s; every answer is compared with golden.jsonl")
        code = subprocess.run(
            [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--host", f"http://{url}",
             "-u", str(LOAD_USERS), "-t", f"{LOAD_SECONDS}s", "--golden", str(CHECKPOINT / "golden.jsonl"),
             "--metrics-url", f"http://127.0.0.1:{server.ports['metrics']}/metrics", "--summary", str(summary)],
            cwd=ROOT, check=False,
        ).returncode  # fmt: skip
        load = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    return code, load


def _ports() -> dict[str, int] | None:
    """8000 to 8003 if all are free; else None, which means any free ports."""
    ports = dict(zip(PORTS, range(8000, 8000 + len(PORTS)), strict=True))
    try:
        for port in ports.values():
            socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return None
    return ports


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
        # A single_label head has accuracy and no micro F1, because the two are the same.
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
