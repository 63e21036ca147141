"""The client's speed: `Client.stream` beside perf_analyzer, raw tritonclient and requests; and its memory.

``client_over_perf_analyzer`` compares texts/s on the real server with a checkpoint, at one batch size and concurrency;
it is the median ratio of the turns. perf_analyzer always asks for all outputs. So the served copy has only two:
PREDICTION, which both ask for, and SCORES, 4 bytes per label, which polyhead-serve's canary needs.

A model that answers at once (`benchmarks.echo_model`) shows texts/s and CPU time of each way to send texts, and the
client's memory while it streams texts from a generator. ``--scoring`` copies ``score_over_engine`` from the result of
`benchmarks.scoring` into the last line.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.client_load import WAYS
from benchmarks.load import analyze, passes_of
from benchmarks.peers.servers import PEERS
from benchmarks.result import RESULTS, in_turns, machine
from benchmarks.workload import read_texts
from loadtest.local_server import ROOT, LocalServer
from loadtest.result import BLUE, PURPLE, RED, report
from polyhead.export import export_checkpoint

MODEL = "gpt2_classifier"
CONFIG = ROOT / "model_repository" / MODEL / "config.pbtxt"
OTHER_OUTPUTS = re.compile(r',\s*\{[^{}]*name: "(SCHEMA|TOKEN_COUNT)"[^{}]*\}')
COLOURS = {"stream": BLUE, "tritonclient": PURPLE, "requests": RED}


def main(options: Sequence[str] | None = None) -> None:
    """Measures all three parts and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/debian"))
    parser.add_argument("--data", type=Path, default=Path("data/debian/test.jsonl"), help="JSON lines with a text")
    parser.add_argument("--out", type=Path, default=RESULTS / "client.json")
    parser.add_argument("--perf-analyzer", type=Path, default=PEERS / "perf_analyzer" / "perf_analyzer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=6.0, help="about how long a turn takes")
    parser.add_argument("--texts", type=int, default=1024, help="number of distinct texts")
    parser.add_argument("--echo-texts", type=int, default=30_000, help="texts per turn on the echo model")
    parser.add_argument("--memory-texts", type=int, default=1_000_000)
    parser.add_argument("--scoring", type=Path, help="result of benchmarks.scoring")
    settings = parser.parse_args(options)
    texts = read_texts(settings.data)[: settings.texts]
    texts = texts[: len(texts) - len(texts) % settings.batch_size]
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
        given = Path(scratch) / "texts.json"
        given.write_text(json.dumps(texts), encoding="utf-8")
        served = _measure_served(Path(scratch) / "served", texts, given, settings)
        echo, memory = _measure_echo(Path(scratch) / "echo", given, settings)
    summary: dict[str, Any] = {"client_over_perf_analyzer": served["ratio"]}
    if settings.scoring:
        summary["score_over_engine"] = json.loads(settings.scoring.read_text(encoding="utf-8"))["score_over_engine"]
    for peer in ("tritonclient", "requests"):
        summary[f"echo_over_{peer}"] = round(echo["stream"]["texts_s"] / echo[peer]["texts_s"], 2)
        summary[f"cpu_over_{peer}"] = round(echo["stream"]["cpu_us_a_text"] / echo[peer]["cpu_us_a_text"], 2)
    summary["memory_growth_mib"] = memory["growth_mib"]
    details = {"served": served, "echo": echo, "memory": memory}
    report(settings, summary, details, _plot(served, echo, memory), machine())


def _measure_served(
    repository: Path, texts: Sequence[str], given: Path, settings: argparse.Namespace
) -> dict[str, Any]:
    version = export_checkpoint(settings.checkpoint, repository)
    _keep_two_outputs(version.parent / "config.pbtxt")
    key = secrets.token_hex(16)
    with LocalServer(repository, environment={"POLYHEAD_ADMIN_KEY": key}) as server:
        url = server.url("http")
        rate = _run("stream", url, given, len(texts), settings)["texts_s"]
        passes = passes_of(texts, rate, settings.window_s)
        perf_analyzer = partial(
            analyze, settings.perf_analyzer, url, key, texts, settings.batch_size, settings.concurrency, passes
        )
        turns: dict[str, Callable[[], float]] = {
            "perf_analyzer": lambda: perf_analyzer().texts_s,
            "stream": lambda: _run("stream", url, given, len(texts) * passes, settings)["texts_s"],
        }
        runs = in_turns("real server, texts/s", turns, settings.repeats)
    ratios = [round(ours / theirs, 3) for theirs, ours in zip(*runs.values(), strict=True)]
    medians = {name: statistics.median(rates) for name, rates in runs.items()}
    return {"ratio": round(statistics.median(ratios), 3), "ratio_all": ratios, "texts_s": medians, "texts_s_all": runs}


def _measure_echo(
    repository: Path, given: Path, settings: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    model = repository / MODEL
    (model / "1" / "checkpoint").mkdir(parents=True)
    (model / "1" / "checkpoint" / "config.json").write_text("{}")  # polyhead-serve expects one
    (model / "1" / "labels.txt").write_text("echo/score\n")
    shutil.copy(Path(__file__).with_name("echo_model.py"), model / "1" / "model.py")
    shutil.copy(CONFIG, model)
    _keep_two_outputs(model / CONFIG.name)
    with LocalServer(repository) as server:
        url = server.url("http")
        ways = {name: partial(_run, name, url, given, settings.echo_texts, settings) for name in WAYS}
        runs = in_turns("echo model", ways, settings.repeats)
        long = _run("stream", url, given, settings.memory_texts, settings)
    echo = {
        name: {key: statistics.median(run[key] for run in found) for key in ("texts_s", "cpu_us_a_text")}
        | {"texts_s_all": [run["texts_s"] for run in found]}
        for name, found in runs.items()
    }
    samples = [(texts, round(size / 2**20, 1)) for texts, size in long["memory"]]
    about_twenty = [*samples[: -1 : max(1, len(samples) // 20)], samples[-1]]
    growth = round(max(size for _, size in samples) - samples[0][1], 1)
    print(f"memory: {samples[0]} to {samples[-1]}, MiB; {long['texts_s']} texts/s", flush=True)
    return echo, {"growth_mib": growth, "mib_after_texts": about_twenty, "texts_s": long["texts_s"]}


def _keep_two_outputs(config: Path) -> None:
    changed, found = OTHER_OUTPUTS.subn("", config.read_text(encoding="utf-8"))
    if found != 2:
        raise SystemExit(f"{config}: has no outputs SCHEMA and TOKEN_COUNT to remove")
    config.write_text(changed, encoding="utf-8")


def _run(way: str, url: str, texts: Path, count: int, settings: argparse.Namespace) -> dict[str, Any]:
    numbers = map(str, (count, settings.batch_size, settings.concurrency))
    command = [sys.executable, "-m", "benchmarks.client_load", way, url, str(texts), *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{way} failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _plot(served: dict[str, Any], echo: dict[str, dict[str, Any]], memory: dict[str, Any]) -> Figure:
    figure, (real, rates, times, sizes) = plt.subplots(1, 4, figsize=(14, 3.6))
    real.bar(list(served["texts_s"]), list(served["texts_s"].values()), color=["#888888", BLUE])
    real.set(title="Real server", ylabel="texts/s")
    for axes, key, title in ((rates, "texts_s", "texts/s"), (times, "cpu_us_a_text", "µs of CPU per text")):
        bars = axes.bar(list(echo), [way[key] for way in echo.values()], color=[COLOURS[name] for name in echo])
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        axes.set(title="Echo model", ylabel=title)
    counts, found = zip(*memory["mib_after_texts"], strict=True)
    sizes.plot(counts, found, color=BLUE)
    sizes.set(title="Memory of stream", ylabel="MiB", xlabel="texts", ylim=(0, None))
    return figure


if __name__ == "__main__":
    main()
