"""The capacity of a server: the highest rate of independent requests that it answers right and in time.

Starts polyhead-serve over a checkpoint on loopback, or asks a running server (``--host``). Runs load tests with open
arrivals at one rate after another, until the rates that meet and miss the objectives are close together. The highest
rate that met them must also hold in a longer run; if it does not, the next lower one must. docs/capacity.md explains
the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from loadtest.local_server import ROOT, LocalServer
from loadtest.result import BLUE, GREEN, ORANGE, PURPLE, RED, RESULTS, describe_machine, report

Figures = dict[str, Any]

SHOWN = ("texts_s", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "refused", "errors", "mismatches")
KEPT = (*SHOWN, "tokens_s", "requests", "texts_per_micro_batch", "late_p99_ms")
SERVER_NICE = 5
SLACK_S = 90  # a load test may take this much longer than its length
LATENCIES = {"p50_ms": "#9bbfe0", "p95_ms": BLUE, "p99_ms": "#16365c"}
STAGES = {"queue": RED, "tokenize": ORANGE, "compute": BLUE, "decode": PURPLE}


class RateRuns:
    """Load tests of one server with open arrivals at different rates.

    Attributes:
        runs: the figures of all load tests, in the order in which they were made; ``rate`` is the texts per second
            that were due, and ``generator_cores`` the load generator's CPU time divided by the length of the run.
        points: the figures of the deciding load test of each rate.
        limits: the objectives.
    """

    def __init__(self, host: str, metrics_url: str, golden: Path, settings: argparse.Namespace) -> None:
        self.runs: list[Figures] = []
        self.points: dict[float, Figures] = {}
        self.limits: dict[str, float] = {}
        self._settings = settings
        self._command = [
            sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary",
            "--loglevel", "WARNING", "--host", host, "--golden", str(golden),
            "--checkpoint", str(settings.checkpoint), "--objectives", str(settings.objectives),
            "--model", settings.model, "--protocol", settings.protocol,
            "--texts-per-request", settings.texts_per_request,
            "--shape", "open", "-u", "4", *(["--metrics-url", metrics_url] if metrics_url else []),
        ]  # fmt: skip

    def run(self, rate: float, seconds: int) -> Figures:
        """Makes one load test; if it cannot be made, the program ends."""
        with tempfile.TemporaryDirectory(prefix="polyhead-capacity-") as scratch:
            path = Path(scratch) / "summary.json"
            command = [*self._command, "--rate", str(rate), "-t", f"{seconds}s", "--summary", str(path)]
            before = _children_cpu_s()
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + SLACK_S
            )
            if done.returncode not in (0, 1) or not path.exists():
                raise SystemExit(f"the load test failed: {(done.stdout + done.stderr)[-2000:]}")
            summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["cut_short"]:
            raise SystemExit(f"the load test was {summary['cut_short']}")
        figures = {
            "rate": rate,
            "met": summary["exit_code"] == 0,
            **{name: summary[name] for name in KEPT},
            "server_mean_ms": {name: stage["mean_ms"] for name, stage in summary["server"].items()},
            "generator_cores": round((_children_cpu_s() - before) / seconds, 2),
        }
        shown = {name: figures[name] for name in SHOWN}
        print(f"{rate:g} texts/s for {seconds} s: {'met' if figures['met'] else 'missed'} {shown}", flush=True)
        self.runs.append(figures)
        self.limits = {verdict["objective"]: verdict["limit"] for verdict in summary["verdicts"]}
        return figures

    def measure(self, rate: float, seconds: int) -> Figures:
        """Makes one load test, and a second one if the first missed, because the machine may have been disturbed.

        The better of the two becomes the point of this rate.
        """
        point = self.run(rate, seconds)
        if not point["met"]:
            again = self.run(rate, seconds)
            point = min((again, point), key=lambda one: (not one["met"], one["p95_ms"] or math.inf))
        self.points[rate] = point
        return point

    def search(self) -> Figures | None:
        """Searches the highest rate and confirms it in longer runs; a rate that is not confirmed counts as missed."""
        settings = self._settings
        self.run(settings.start_rate, max(settings.seconds // 3, 1))  # warms up caches and connections
        met = find_highest(
            lambda rate: self.measure(rate, settings.seconds)["met"],
            settings.start_rate, settings.closeness, settings.most_runs,
        )  # fmt: skip
        for _ in range(3):
            rate = highest_met(met)
            if rate is None:
                return None
            point = self.measure(rate, settings.confirm_seconds)
            met[rate] = point["met"]
            if point["met"]:
                return point
        return None


def find_highest(meets: Callable[[float], bool], start: float, closeness: float, most_runs: int) -> dict[float, bool]:
    """Searches the highest rate that meets the objectives, by doubling and then by bisection.

    Args:
        meets: runs a rate and says whether it met the objectives.
        start: the first rate.
        closeness: the search ends when the lowest missed rate is at most this many times the highest met one.
        most_runs: the search ends after this many runs in any case.

    Returns:
        All rates that were run, and whether they met the objectives; `highest_met` selects the result.
    """
    met: dict[float, bool] = {}
    while len(met) < most_runs:
        highest = highest_met(met)
        missed = min((rate for rate, good in met.items() if not good and rate > (highest or 0)), default=None)
        if highest is None:
            rate = start if missed is None else missed / 2
        elif missed is None:
            rate = 2 * highest
        elif missed <= highest * closeness:
            break
        else:
            rate = math.sqrt(highest * missed)
        rate = float(f"{rate:.3g}")
        if rate in met:
            break
        met[rate] = meets(rate)
    return met


def highest_met(met: Mapping[float, bool]) -> float | None:
    """The highest rate such that it and all lower measured rates met the objectives; None if there is none."""
    highest = None
    for rate in sorted(met):
        if not met[rate]:
            break
        highest = rate
    return highest


def main(options: Sequence[str] | None = None) -> None:
    """Searches, confirms, writes the result, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/debian"))
    parser.add_argument("--data", type=Path, default=Path("data/debian/test.jsonl"), help="the texts to send")
    parser.add_argument("--texts", type=int, default=3000, help="number of texts to take from --data")
    parser.add_argument("--objectives", type=Path, default=Path("loadtest/objectives.toml"))
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    parser.add_argument("--texts-per-request", default="1")
    parser.add_argument("--host", default="", help="a running server, such as http://127.0.0.1:8000")
    parser.add_argument("--metrics-url", default="", help="the running server's metrics")
    parser.add_argument("--model", default="gpt2_classifier", help="the model's name")
    parser.add_argument("--start-rate", type=float, default=50.0, help="first rate, in texts per second")
    parser.add_argument("--closeness", type=float, default=1.05, help="end when missed and met rates are this close")
    parser.add_argument("--most-runs", type=int, default=12, help="most rates to try")
    parser.add_argument("--seconds", type=int, default=12, help="length of a run")
    parser.add_argument("--confirm-seconds", type=int, default=30, help="length of the confirming run")
    parser.add_argument("--out", type=Path, default=RESULTS / "capacity.json")
    settings = parser.parse_args(options)
    for name in ("checkpoint", "data", "objectives"):  # the load test runs in the repository's root
        setattr(settings, name, getattr(settings, name).resolve())
    with _server(settings) as runs:
        confirmed = runs.search()
    points = [point for _, point in sorted(runs.points.items())]
    # The rate that was answered. It is a little lower than the rate that was due: the run ends with its last answer.
    capacity = confirmed["texts_s"] if confirmed else 0.0
    names = ("tokens_s", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "generator_cores")
    summary = {
        "capacity_texts_s": capacity,
        "objectives": runs.limits,
        **({name: confirmed[name] for name in names} if confirmed else {}),
        **{name: sum(run[name] for run in runs.runs) for name in ("requests", "refused", "errors", "mismatches")},
    }
    figure = plot_capacity(points, capacity, runs.limits)
    details = {"confirmed": confirmed, "points": points}
    report(settings, summary, details, figure, describe_machine("locust", "numpy"))


@contextmanager
def _server(settings: argparse.Namespace) -> Iterator[RateRuns]:
    """A server over the checkpoint, unless ``--host`` names one, and the answers that it must give."""
    with tempfile.TemporaryDirectory(prefix="polyhead-capacity-") as scratch:
        golden, repository = Path(scratch) / "expected.jsonl", Path(scratch) / "repository"
        _command("polyhead-golden", settings.checkpoint, settings.data, golden, "--most", settings.texts)
        if settings.host:
            yield RateRuns(settings.host, settings.metrics_url, golden, settings)
            return
        _command("polyhead-export", settings.checkpoint, "--repository", repository, "--name", settings.model)
        server = LocalServer(repository)
        # If both need more than the machine's cores, requests must wait in the server's queue and not in the load
        # generator. The processes that the server starts inherit this.
        os.setpriority(os.PRIO_PROCESS, server.process.pid, SERVER_NICE)
        with server:
            host = f"http://{server.url(settings.protocol)}"
            yield RateRuns(host, f"http://{server.url('metrics')}/metrics", golden, settings)


def _command(name: str, *arguments: object) -> None:
    """Runs a command of the product that is installed beside this Python; if it fails, the program ends."""
    if code := subprocess.run([Path(sys.executable).with_name(name), *map(str, arguments)], check=False).returncode:
        raise SystemExit(f"{name} failed with {code}")


def _children_cpu_s() -> float:
    """CPU time of all child processes that have ended; the server still runs and is not included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plot_capacity(points: Sequence[Mapping[str, Any]], capacity: float, limits: Mapping[str, float]) -> Figure:
    """Draws latency over throughput, and next to it the server's times.

    Args:
        points: as in `RateRuns`, in the order of their rates.
        limits: objectives by name.
    """
    answered = "texts/s answered right"
    at = [point["texts_s"] for point in points]
    figure, (client, server) = plt.subplots(1, 2, figsize=(12, 4.4))
    for name, colour in LATENCIES.items():
        client.plot(at, [point[name] for point in points], "o-", ms=4, color=colour, label=name.removesuffix("_ms"))
        if name in limits:
            client.axhline(limits[name], color=colour, linestyle=":", linewidth=1)
            label = f"objective: {name.removesuffix('_ms')} {limits[name]:g} ms"
            client.annotate(label, (0, limits[name]), (4, 3), textcoords="offset points", fontsize=8, color=colour)
    if capacity:
        client.axvline(capacity, color=GREEN, linewidth=1)
        client.annotate(
            f"capacity {capacity:.0f} texts/s", (capacity, 1), (-4, -10), ("data", "axes fraction"), "offset points",
            fontsize=8, color=GREEN, ha="right",
        )  # fmt: skip
    for name, colour in STAGES.items():
        server.plot(at, [point["server_mean_ms"].get(name) for point in points], "o-", ms=4, color=colour, label=name)
    client.set(title="Latency from the time when a request was due", ylabel="ms", xlabel=answered, yscale="log")
    server.set(
        title="Server: queue per request, stages per call or micro-batch",
        ylabel="ms, mean",
        xlabel=answered,
        yscale="log",
    )
    for axes in (client, server):
        axes.set_xlim(0, None)
        axes.legend()
    return figure


if __name__ == "__main__":
    main()
