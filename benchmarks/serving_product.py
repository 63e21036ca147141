"""The product's half of the serving benchmark: start-up, and tritonserver and the engine alone in turns."""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load import Load, Send, analyze, drive, median_load, passes_of, requests_of, summarize
from loadtest.local_server import ROOT, VENV, LocalServer
from polyhead_client import Client

ENGINE_BATCH = 64  # max_batch_size in config.pbtxt
PEER_CLIENTS = 16
SHORT_TEXTS = 63  # with one long text they fill a batch

Engine = Callable[[Sequence[list[str]]], Load]
Point = Callable[[Sequence[str], int, int, int], Load]  # arguments: texts, texts per request, clients, passes


def measure_startup(repository: Path, repeats: int) -> dict[str, Any]:
    """Seconds from the start of polyhead-serve to its line ``ready``, which it prints when a canary was answered."""
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        with LocalServer(repository):
            seconds.append(round(time.monotonic() - began, 2))
    print(f"start-up: {seconds} s", flush=True)
    return {"median": statistics.median(seconds), "all": seconds}


def measure_product(
    repository: Path, checkpoint: Path, texts: Sequence[str], settings: argparse.Namespace
) -> dict[str, Any]:
    """Measures latency, all points, and then the best point in turns with the engine. The other one is always idle."""
    key = secrets.token_hex(16)
    with (
        _engine_alone(checkpoint, settings.device) as engine,
        LocalServer(repository, environment={"POLYHEAD_ADMIN_KEY": key}) as served,
    ):
        http = served.url("http")
        known: dict[str, Point] = {
            "client": lambda sent, size, clients, passes: drive(
                lambda: _our_client(http), requests_of(sent, size, passes), clients
            ),
            "perf_analyzer": lambda sent, size, clients, passes: analyze(
                settings.perf_analyzer, http, key, sent, size, clients, passes
            ),
        }
        loads = {name: known[name] for name in settings.loads}
        fewest = settings.texts
        rate = engine(requests_of(texts[:fewest], ENGINE_BATCH, 1)).texts_s
        latency = _added_latency(engine, loads, texts[: settings.latency_texts], settings.repeats)
        rates = (rate, latency["rounds"]["engine"][0]["texts_s"])
        beside_long = _beside_long_text(http, texts, settings.repeats)
        points = [
            _measure_point(name, load, size, clients, _texts_of_point(texts, fewest, size, clients), rates, settings)
            for size in settings.texts_a_request
            for clients in settings.clients
            for name, load in loads.items()
        ]
        best = max((point for point in points if "texts_s" in point), key=lambda point: point["texts_s"])
        size, clients = best["texts_a_request"], best["clients"]
        sent, few = _texts_of_point(texts, fewest, size, clients), texts[:fewest]
        pairs, same_load = [], []
        for _ in range(settings.repeats):
            passes = passes_of(sent, rate, settings.window_s)
            pairs.append(
                (engine(requests_of(sent, ENGINE_BATCH, passes)), loads[best["load"]](sent, size, clients, passes))
            )
            same_load.append(known["client"](few, 1, PEER_CLIENTS, passes_of(few, rate, settings.window_s)))
            print(f"engine, server: {[load.texts_s for load in pairs[-1]]} texts/s", flush=True)
    alone, server = zip(*pairs, strict=True)
    ratios = [round(two.texts_s / one.texts_s, 3) for one, two in pairs]
    return {
        "server_over_engine": statistics.median(ratios),
        "server_over_engine_all": ratios,
        "latency": latency,
        "short_texts_beside_a_long_one": beside_long,
        "engine": median_load(alone),
        "server": {name: best[name] for name in ("load", "texts_a_request", "clients")} | median_load(server),
        "points": points,
        "same_load_as_peers": median_load(same_load),
    }


def _texts_of_point(texts: Sequence[str], fewest: int, size: int, clients: int) -> Sequence[str]:
    """Whole requests, and no text twice in flight, because the engine computes equal texts of a batch only once."""
    enough = min(max(fewest, size * clients), len(texts))
    return texts[: enough - enough % size]


def _measure_point(
    name: str,
    load: Point,
    size: int,
    clients: int,
    sent: Sequence[str],
    rates: tuple[float, float],
    settings: argparse.Namespace,
) -> dict[str, Any]:
    """Measures one point, or says why it is left out; `rates` are the engine's in batches and one by one."""
    point: dict[str, Any] = {"load": name, "texts_a_request": size, "clients": clients}
    in_flight = size * clients
    rate = min(rates[0], in_flight * rates[1])
    if in_flight > 2 * settings.window_s * rate:
        point["left_out"] = f"{in_flight} texts in flight would take longer than two windows"
    elif in_flight > len(sent):
        point["left_out"] = f"{in_flight} texts in flight, but {len(sent)} in --data"
    else:
        point |= asdict(load(sent, size, clients, passes_of(sent, rate, settings.window_s)))
    print(point, flush=True)
    return point


def _added_latency(engine: Engine, loads: dict[str, Point], texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """What the server adds to the latency of a single text, by load: the difference of medians over the same texts."""
    added: dict[str, list[float]] = {name: [] for name in loads}
    rounds: dict[str, list[Load]] = {name: [] for name in ("engine", *loads)}
    for load in loads.values():
        load(texts[:4], 1, 1, 1)
    for _ in range(repeats):
        alone = engine(requests_of(texts, 1, 1))
        rounds["engine"].append(alone)
        for name, load in loads.items():
            rounds[name].append(load(texts, 1, 1, 1))
            added[name].append(round(rounds[name][-1].p50_ms - alone.p50_ms, 2))
    print(f"added latency, ms: {added}", flush=True)
    return {
        "added_ms": {name: round(statistics.median(values), 2) for name, values in added.items()},
        "added_ms_all": added,
        "rounds": {name: [asdict(load) for load in measured] for name, measured in rounds.items()},
    }


def _beside_long_text(http: str, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """How much longer short texts wait when a text of the model's greatest length comes first: ratio of medians."""
    short = [[text] for text in sorted(dict.fromkeys(texts), key=len)[:SHORT_TEXTS]]
    long = [" ".join(texts)[:20_000]]  # the model truncates it
    ratios, waits = [], []
    for _ in range(repeats):
        alone = drive(lambda: _our_client(http), short, len(short))
        beside = drive(lambda: _our_client(http), [long, *short], len(short) + 1)
        waits.append([alone.p50_ms, beside.p50_ms])
        ratios.append(round(beside.p50_ms / alone.p50_ms, 2))
    print(f"short texts beside a long one: {ratios} times as long", flush=True)
    return {"ratio": statistics.median(ratios), "ratio_all": ratios, "p50_ms_alone_and_beside": waits}


@contextmanager
def _engine_alone(checkpoint: Path, device: str) -> Iterator[Engine]:
    """Runs the engine alone in the server's environment; yields a function that measures requests."""
    command: list[str | Path] = [VENV / "bin" / "python", "-m", "benchmarks.engine_alone", checkpoint, device]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    jobs, answers = process.stdin, process.stdout
    assert jobs is not None
    assert answers is not None

    def measure(requests: Sequence[list[str]]) -> Load:
        jobs.write(json.dumps({"requests": requests}) + "\n")
        jobs.flush()
        answer = json.loads(answers.readline())
        return summarize(answer["latencies_s"], sum(map(len, requests)), answer["seconds"])

    try:
        yield measure
    finally:
        jobs.close()
        process.wait(60)
        answers.close()


@contextmanager
def _our_client(url: str) -> Iterator[Send]:
    with Client(url, timeout_s=600) as client:
        yield client.classify
