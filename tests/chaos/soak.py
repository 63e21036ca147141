"""``python -m tests.chaos.soak``: a verified load for 20 minutes; no wrong answer, flat memory, an empty queue.

HTTP goes through the proxy, gRPC straight to the server; each second adds two bad requests and a new client.
Afterwards, no text may wait in the model's queue.
Exit code 0 only if so. SOAK_MINUTES or ``--minutes`` sets the time; a soak of 20 minutes or more saves its result.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.result import RESULTS, write_result
from polyhead.export import export_checkpoint
from polyhead_client import Client
from tests.chaos.corpus import Corpus, make_texts
from tests.chaos.harm import metric, serve, server_pid, wait_until_empty
from tests.chaos.load import VerifiedLoad
from tests.chaos.memory import Flatness, MemoryLog, flatness
from tests.chaos.plain import INFER
from tests.chaos.proxy import client_of, through_proxy
from tests.e2e.plain_json import json_body
from tests.e2e.processes import descendants, model_processes
from tests.tiny import write_tiny_checkpoint

FULL_MINUTES = 20.0
INTERVAL_S = 5.0
QUEUE_METRICS = (
    "queue_seconds_sum", "queue_seconds_count", "micro_batches_total",
    "refused_requests_total", "dropped_requests_total",
)  # fmt: skip


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """Serves, asks and samples; returns the result."""
    checkpoint, repository = folder / "checkpoint", folder / "repository"
    write_tiny_checkpoint(checkpoint, architecture="hidden_state_concat")
    export_checkpoint(checkpoint, repository)
    corpus = Corpus.of(checkpoint, make_texts(500, longest=40))
    with ExitStack() as stack:
        served = stack.enter_context(serve(repository))
        proxied = stack.enter_context(through_proxy(served))
        (model,) = model_processes(served)
        processes = {
            "supervisor": served.process.pid,
            "tritonserver": server_pid(served),
            "model process": model,
            "nginx": proxied.process.pid,
            **{f"nginx worker {number}": pid for number, pid in enumerate(descendants(proxied.process.pid), start=1)},
            "clients": os.getpid(),
        }
        over_http = stack.enter_context(client_of(proxied))
        over_grpc = stack.enter_context(Client(served.url("grpc"), protocol="grpc"))
        stack.callback(wait_until_empty, served)  # when the loads have ended and before the server does
        loads = [
            stack.enter_context(VerifiedLoad(client.scores, corpus, threads=3)) for client in (over_http, over_grpc)
        ]
        log = stack.enter_context(MemoryLog(processes, INTERVAL_S))
        rejected = 0

        def disturb() -> None:
            # Errors and new connections use other code, which could leak too.
            nonlocal rejected
            for body in (json_body(["", secrets.token_hex(8)], ["SCORES"], x=1), {"inputs": secrets.token_hex(8)}):
                rejected += proxied.ask(INFER, json.dumps(body).encode())[0] == HTTPStatus.BAD_REQUEST
            with client_of(proxied) as fresh:
                fresh.classify([secrets.token_hex(16), ""])

        log.wait(60 * minutes, disturb)
        still = {"tritonserver": server_pid(served), "model process": model_processes(served)[0]}
        assert still == {name: processes[name] for name in still}, "a process was restarted"
        queue = {name: metric(served, f"polyhead_{name}") for name in QUEUE_METRICS}
    count = loads[0].count + loads[1].count
    return {
        "minutes": round(minutes, 1),
        "requests": count.requests,
        **{name: value for name, value in count.numbers().items() if name != "requests"},
        "rejected_requests": rejected,
        "queue": queue,
        "examples": count.examples,
        "memory": {name: asdict(flatness(log.minutes, values)) for name, values in log.mib.items()},
        "samples": {
            "minutes": [round(minute, 2) for minute in log.minutes],
            "mib": {name: [round(value, 1) for value in values] for name, values in log.mib.items()},
        },
    }


def plot(result: dict[str, Any]) -> Figure:
    """Plots each process's memory over time, as the distance from its median after the warm-up."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in result["samples"]["mib"].items():
        judged = Flatness(**result["memory"][name])
        label = f"{name}: {judged.median_mib:g} MiB, {judged.growth_mib:+g} (allowed +{judged.allowed_mib:g})"
        axes.plot(result["samples"]["minutes"], [value - judged.median_mib for value in values], label=label)
    axes.set_xlabel("minutes")
    axes.set_ylabel("MiB from the median")
    axes.set_ylim(-40, 40)
    axes.set_title(f"Memory over {result['requests']:,} requests; lost {result['lost']}, wrong {result['wrong']}")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES") or FULL_MINUTES))
    minutes = parser.parse_args(argv).minutes
    with tempfile.TemporaryDirectory(prefix="polyhead_soak_") as folder:
        result = soak(minutes, Path(folder))
    if minutes >= FULL_MINUTES:
        write_result(RESULTS / "soak.json", result, plot(result))
    for name, values in result["memory"].items():
        judged = Flatness(**values)
        print(
            f"{name:14} {judged.median_mib:8.1f} MiB, grew by {judged.growth_mib:+6.2f} MiB after the warm-up, "
            f"allowed {judged.allowed_mib:g}: {'flat' if judged.is_flat else 'NOT FLAT'}"
        )
    print("\n".join(result["examples"]))
    flat = all(Flatness(**values).is_flat for values in result["memory"].values())
    numbers = {name: result[name] for name in ("minutes", "requests", "shed", "lost", "wrong")}
    print(json.dumps(numbers | {"flat": flat}), flush=True)
    return int(not flat or result["lost"] > 0 or result["wrong"] > 0 or result["answered"] == 0)


if __name__ == "__main__":
    sys.exit(main())
