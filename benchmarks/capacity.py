"""The highest rate of independent requests that a server answers rightly and in time, and its latency on the way.

Starts polyhead-serve with the checkpoint on loopback (or asks one that runs, ``--host``), and lets ``loadtest/`` send
open arrivals at one rate after the other: doubled while the objectives are met, then halved in between. The rate that
is found has to hold in a longer run; where it does not, the next lower one has to. docs/capacity.md says how to read
the result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.capacity_plot import plot_capacity
from benchmarks.rate_search import find_highest, highest_met
from benchmarks.result import RESULTS, write_result
from loadtest.local_server import ROOT, LocalServer
from polyhead.export import export_checkpoint

SHOWN = ("texts_s", "p50_ms", "p95_ms", "p99_ms", "errors", "mismatches")
SERVER_NICE = 5
SLACK_S = 90  # of a load test beyond its length


@dataclass(frozen=True)
class RatePoint:
    """One load test with open arrivals.

    Attributes:
        rate: texts a second that were to come.
        summary: of the load test.
        generator_cores: CPU time of the load generator over the time of the run.
    """

    rate: float
    summary: dict[str, Any]
    generator_cores: float

    @property
    def met(self) -> bool:
        """Whether all objectives were."""
        return bool(self.summary["exit_code"] == 0)

    def figures(self) -> dict[str, Any]:
        """What of it is kept."""
        server = {name: stage["mean_ms"] for name, stage in self.summary["server"].items()}
        kept = {name: self.summary[name] for name in (*SHOWN, "tokens_s", "requests", "texts_a_batch", "late_p99_ms")}
        return {"rate": self.rate, "met": self.met, **kept, "server_mean_ms": server,
                "generator_cores": round(self.generator_cores, 2)}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where to send, what to expect, and what was found so far."""

    host: str
    metrics_url: str
    golden: Path
    settings: argparse.Namespace
    runs: list[RatePoint] = field(default_factory=list)

    def run(self, rate: float, seconds: int) -> RatePoint:
        """One load test; one that cannot be made ends the benchmark."""
        with tempfile.TemporaryDirectory(prefix="polyhead-capacity-") as scratch:
            summary = Path(scratch) / "summary.json"
            command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary",
                       "--loglevel", "WARNING", "--host", self.host, "--golden", str(self.golden),
                       "--checkpoint", str(self.settings.checkpoint), "--objectives", str(self.settings.objectives),
                       "--protocol", self.settings.protocol, "--texts-per-request", self.settings.texts_per_request,
                       "--shape", "open", "--rate", str(rate), "-u", "4", "-t", f"{seconds}s",
                       "--summary", str(summary)]  # fmt: skip
            if self.metrics_url:
                command += ["--metrics-url", self.metrics_url]
            before = _children_cpu_s()
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + SLACK_S
            )
            if done.returncode not in (0, 1) or not summary.exists():
                raise SystemExit(f"the load test failed: {(done.stdout + done.stderr)[-2000:]}")
            point = RatePoint(
                rate, json.loads(summary.read_text(encoding="utf-8")), (_children_cpu_s() - before) / seconds
            )
        shown = {name: point.summary[name] for name in SHOWN}
        print(f"{rate:g} texts/s for {seconds} s: {'met' if point.met else 'missed'} {shown}", flush=True)
        self.runs.append(point)
        return point

    def measure(self, rate: float, seconds: int) -> RatePoint:
        """One load test, or the better of two where the first missed: a moment of the machine's is not the server's."""
        point = self.run(rate, seconds)
        if point.met:
            return point
        again = self.run(rate, seconds)
        return min((again, point), key=lambda one: (not one.met, one.summary["p95_ms"] or float("inf")))


def main(options: Sequence[str] | None = None) -> None:
    """Searches, confirms, and prints one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/debian"))
    parser.add_argument("--data", type=Path, default=Path("data/debian/test.jsonl"), help="texts to send")
    parser.add_argument("--texts", type=int, default=3000, help="as many of them")
    parser.add_argument("--objectives", type=Path, default=Path("loadtest/objectives.toml"))
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    parser.add_argument("--texts-per-request", default="1")
    parser.add_argument("--host", default="", help="a server that runs already, such as http://localhost:8000")
    parser.add_argument("--metrics-url", default="", help="its metrics")
    parser.add_argument("--start-rate", type=float, default=50.0, help="texts a second")
    parser.add_argument("--closeness", type=float, default=1.05)
    parser.add_argument("--most-runs", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=12, help="length of a run")
    parser.add_argument("--confirm-seconds", type=int, default=30, help="length of the run that confirms")
    parser.add_argument("--out", type=Path, default=RESULTS / "capacity.json")
    settings = parser.parse_args(options)
    with _target(settings) as target:
        target.run(settings.start_rate, max(settings.seconds // 3, 1))  # caches and connections become warm
        points = find_highest(
            lambda rate: target.measure(rate, settings.seconds),
            settings.start_rate,
            settings.closeness,
            settings.most_runs,
        )
        confirmed = _confirm(target, points, settings)
    figures = [point.figures() for _, point in sorted(points.items())]
    limits = {verdict["objective"]: verdict["limit"] for verdict in target.runs[0].summary["verdicts"]}
    # What was answered, which is a little less than what was due: the run ends with its last answer.
    summary: dict[str, Any] = {"capacity_texts_s": confirmed.summary["texts_s"] if confirmed else 0.0}
    summary["objectives"] = limits
    if confirmed:
        names = ("tokens_s", "p50_ms", "p95_ms", "p99_ms", "generator_cores")
        summary |= {name: value for name, value in confirmed.figures().items() if name in names}
    for name in ("requests", "errors", "mismatches"):
        summary[name] = sum(point.summary[name] for point in target.runs)
    described = {name: value for name, value in vars(settings).items() if not isinstance(value, Path)}
    details = {"settings": described, "confirmed": confirmed and confirmed.figures(), "points": figures}
    write_result(settings.out, summary | details, plot_capacity(figures, summary["capacity_texts_s"], limits))
    print(json.dumps(summary))


def _confirm(target: Target, points: dict[float, RatePoint], settings: argparse.Namespace) -> RatePoint | None:
    """The highest rate that also holds for longer; one that does not counts as missed."""
    for _ in range(3):
        rate = highest_met(points)
        if rate is None:
            return None
        points[rate] = point = target.measure(rate, settings.confirm_seconds)
        if point.met:
            return point
    return None


@contextmanager
def _target(settings: argparse.Namespace) -> Iterator[Target]:
    """A server over the checkpoint, unless one was named, and the answers that it must give."""
    for name in ("checkpoint", "data", "objectives"):  # the load test runs in the repository's root
        setattr(settings, name, getattr(settings, name).resolve())
    with tempfile.TemporaryDirectory(prefix="polyhead-capacity-") as scratch:
        golden = Path(scratch) / "expected.jsonl"
        command = [sys.executable, "-m", "polyhead.golden", str(settings.checkpoint), str(settings.data), str(golden)]
        subprocess.run([*command, "--most", str(settings.texts)], check=True, cwd=ROOT)
        if settings.host:
            yield Target(settings.host, settings.metrics_url, golden, settings)
            return
        export_checkpoint(settings.checkpoint, Path(scratch) / "repository")
        server = LocalServer(Path(scratch) / "repository", environment={})
        # Where both want more than the machine's cores, requests must wait in the server's queue and not in the load
        # generator's. What the server starts inherits it.
        os.setpriority(os.PRIO_PROCESS, server.process.pid, SERVER_NICE)
        with server:
            host = f"http://{server.url(settings.protocol)}"
            yield Target(host, f"http://{server.url('metrics')}/metrics", golden, settings)


def _children_cpu_s() -> float:
    """CPU time of all child processes that have ended; the server has not."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
