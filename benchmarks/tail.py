"""The slowest answers of the real server: closed loops, open arrivals, overload, and short texts beside a long one.

All loads are single texts from `benchmarks.raw_load`. The last line has:

- ``slow_share``: share of requests that took over 300 ms or failed; the worst of the closed loops and of open arrivals
  at half the throughput of 64 clients.
- ``p999_over_p50``: the worst of 1 to 8 clients.
- ``short_beside_long``: GPT-2 small's shape with random weights. How much longer 63 texts of 16 tokens take if a text
  of 1,024 tokens has just arrived: ratio of median latencies, median of the pairs of bursts.
- ``refusal_ms``: five times the capacity through the reverse proxy, each request with a short deadline. 99th percentile
  of the time until a refusal is heard. The demo's model computes texts about as fast as Triton can hand over requests,
  so most must be refused before Triton.
- ``refusal_ms_small``: the same with GPT-2 small's shape, without the proxy.
- ``texts_s_64``: throughput of 64 clients.
- ``over_synchronous``: the same in turns, divided by the throughput of `benchmarks.synchronous_model`, which has no
  queue. ``--variants own synchronous`` measures the loops and the open arrivals with both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from benchmarks.raw_load import INFER, RawLoad, raw_load
from benchmarks.result import RESULTS, in_turns, machine
from benchmarks.workload import SCHEMA, random_checkpoint, read_texts
from loadtest.local_proxy import LocalProxy
from loadtest.local_server import LocalServer
from loadtest.result import BLUE, GREEN, ORANGE, PURPLE, RED, report
from polyhead.export import export_checkpoint

SLOW_MS = 300
FEW_CLIENTS = 8  # p99.9 is compared with p50 up to here
MANY_CLIENTS = 64
OVERLOAD = 5
SHORT_TEXTS, SHORT_TOKENS, LONG_TOKENS = 63, 16, 1024
OK, UNAVAILABLE = 200, 503
REFUSED = (UNAVAILABLE, 429)  # the model, the proxy
KEY = "a.key-of~the_benchmark"
# One key sends everything, so only the bound for all callers together may act.
NO_LIMIT = {"RATE": "1000000r/s", "BURST": "1000000", "CONNECTIONS": "65535", "ACCESS_LOG": "/dev/null"}
OWN, SYNCHRONOUS = "own", "synchronous"
PERCENTILES = {"p50_ms": BLUE, "p99_ms": GREEN, "p999_ms": ORANGE, "max_ms": RED}


def main(options: Sequence[str] | None = None) -> None:
    """Measures all points and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/debian"))
    parser.add_argument("--data", type=Path, default=Path("data/debian/test.jsonl"), help="JSON lines with a text")
    parser.add_argument("--out", type=Path, default=RESULTS / "tail.json")
    parser.add_argument("--seconds", type=float, default=60.0, help="per point")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--variants", nargs="+", choices=[OWN, SYNCHRONOUS], default=[OWN], help="of all points")
    parser.add_argument("--slices", type=int, default=6, help="turns per variant with 64 clients; 0: none")
    parser.add_argument("--slice-s", type=float, default=5.0)
    parser.add_argument("--deadline-s", type=float, default=1.0, help="of requests in the overload")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of bursts")
    parser.add_argument("--layers", type=int, default=12, help="of the model with random weights")
    parser.add_argument("--channels", type=int, default=768, help="of the model with random weights")
    parser.add_argument("--small-s", type=float, default=30.0, help="for its capacity, and again for its overload")
    parser.add_argument("--small-deadline-s", type=float, default=5.0, help="of requests in its overload")
    settings = parser.parse_args(options)
    texts = [text for text in dict.fromkeys(read_texts(settings.data)) if text.strip()]
    texts = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as folder:
        scratch = Path(folder)
        own, synchronous = _repositories(settings.checkpoint, scratch)
        with raw_load(texts, scratch) as load, ExitStack() as servers:
            server = servers.enter_context(LocalServer(own))
            ports = {OWN: server.ports["http"]}
            if settings.slices or SYNCHRONOUS in settings.variants:
                ports[SYNCHRONOUS] = servers.enter_context(LocalServer(synchronous)).ports["http"]
            points = {name: _measure_points(load, ports[name], settings) for name in settings.variants}
            capacity = _throughput(load, ports[OWN], settings.slice_s)
            # Without TLS, which the sender would pay for too.
            with LocalProxy(scratch, f"benchmark {KEY}\n", None, INFERENCE=server.url("http"), **NO_LIMIT) as proxy:
                overload = _measure_overload(
                    load, proxy.port, OVERLOAD * capacity, settings.deadline_s, settings.seconds, key=KEY
                )
            beside = _side_by_side(load, ports, settings) if settings.slices else None
        bursts, overload_small = _measure_small(
            texts, Tokenizer.from_file(str(settings.checkpoint / "tokenizer.json")), scratch, settings
        )
    measured = points.get(OWN) or points[SYNCHRONOUS]
    few = [point for point in measured["closed"] if point["clients"] <= FEW_CLIENTS]
    summary = {
        "slow_share": max(point["slow_share"] for point in [*measured["closed"], measured["half"]]),
        "p999_over_p50": max((point["p999_over_p50"] for point in few), default=None),
        "short_beside_long": bursts["ratio"],
        "refusal_ms": overload["refusal_ms"] and overload["refusal_ms"]["p99"],
        "refusal_ms_small": overload_small["refusal_ms"] and overload_small["refusal_ms"]["p99"],
        "texts_s_64": next((p["texts_s"] for p in measured["closed"] if p["clients"] == MANY_CLIENTS), capacity),
        "over_synchronous": beside["ratio"] if beside else None,
    }
    details = {
        "points": points,
        "overload": overload,
        "overload_small": overload_small,
        "side_by_side": beside,
        "bursts": bursts,
    }
    report(settings, summary, details, _plot(points), machine())


def _repositories(checkpoint: Path, scratch: Path) -> tuple[Path, Path]:
    """Exports the checkpoint; the second repository is a copy with the synchronous model."""
    own, synchronous = scratch / "own", scratch / "synchronous"
    version = export_checkpoint(checkpoint, own)
    shutil.copytree(own, synchronous)
    model = Path(__file__).with_name("synchronous_model.py")
    shutil.copyfile(model, synchronous / version.relative_to(own) / "model.py")
    return own, synchronous


def _measure_points(load: RawLoad, port: int, settings: argparse.Namespace) -> dict[str, Any]:
    """The closed loops, and open arrivals at half the throughput of the last one."""
    closed = []
    for clients in settings.clients:
        closed.append(
            {"clients": clients} | summarize(load("closed", port=port, clients=clients, seconds=settings.seconds))
        )
        print(closed[-1], flush=True)
    rate = closed[-1]["texts_s"] / 2
    half = {"rate": rate} | summarize(load("open", port=port, rate=rate, seconds=settings.seconds))
    print(half, flush=True)
    return {"closed": closed, "half": half}


def summarize(found: Mapping[str, Any]) -> dict[str, Any]:
    """Throughput and percentiles of a load. Latencies count from the time at which a request was due."""
    statuses = np.array(found["statuses"])
    lags = np.array(found["lags_s"])
    latencies = (np.array(found["latencies_s"]) + lags) * 1e3
    p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9])
    slow = (latencies > SLOW_MS) | (statuses != OK)
    return {
        "requests": len(latencies),
        "texts_s": round(float((statuses == OK).sum() / found["seconds"]), 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "p999_ms": round(float(p999), 2),
        "max_ms": round(float(latencies.max()), 2),
        "p999_over_p50": round(float(p999 / p50), 2),
        "slow": int(slow.sum()),
        "slow_share": round(float(slow.mean()), 6),
        "failed": int((statuses != OK).sum()),
        "sent_late_ms_p99": round(float(np.percentile(lags, 99)) * 1e3, 2),
        "sender_cores": found["core_share"],
    }


def _throughput(load: RawLoad, port: int, seconds: float) -> float:
    rate: float = summarize(load("closed", port=port, clients=MANY_CLIENTS, seconds=seconds))["texts_s"]
    return rate


def _measure_overload(
    load: RawLoad, port: int, rate: float, deadline_s: float, seconds: float, key: str | None = None
) -> dict[str, Any]:
    found = load("open", port=port, rate=rate, seconds=seconds, timeout_s=deadline_s, key=key)
    result = {"rate": round(rate, 1), "deadline_s": deadline_s} | summarize_overload(found, deadline_s)
    print(result, flush=True)
    return result


def summarize_overload(found: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
    """What became of the requests. Latencies count from the time at which a request was sent."""
    statuses, latencies = np.array(found["statuses"]), np.array(found["latencies_s"])
    expired = np.array(found["expired"], dtype=bool)
    answered = statuses == OK
    refused = np.isin(statuses, REFUSED) & ~expired
    return {
        "not_sent": found["not_sent"],
        "sent_s": round(len(latencies) / found["seconds"], 1),
        "answered": int(answered.sum()),
        "answered_ms": _percentiles(latencies[answered]),
        "missed_deadline": int((answered & (latencies > deadline_s)).sum() + expired.sum()),
        "expired": int(expired.sum()),
        "refused": int(refused.sum()),
        "refusal_ms": _percentiles(latencies[refused]),
        "failed": int((~answered & ~np.isin(statuses, REFUSED)).sum()),
        "sent_late_ms_p99": round(float(np.percentile(found["lags_s"], 99)) * 1e3, 2),
        "sender_cores": found["core_share"],
    }


def _percentiles(latencies_s: Any) -> dict[str, float] | None:
    if not len(latencies_s):
        return None
    p50, p99, p100 = (round(float(value) * 1e3, 2) for value in np.percentile(latencies_s, [50, 99, 100]))
    return {"p50": p50, "p99": p99, "max": p100}


def _side_by_side(load: RawLoad, ports: Mapping[str, int], settings: argparse.Namespace) -> dict[str, Any]:
    """64 clients on both variants in turns, so that one is idle while the other is measured."""
    turns = {name: partial(_throughput, load, port, settings.slice_s) for name, port in ports.items()}
    rates = in_turns("64 clients, texts/s", turns, settings.slices)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratio = round(medians[OWN] / medians[SYNCHRONOUS], 3)
    return {"ratio": ratio, "texts_s": medians, "texts_s_all": rates}


def _measure_small(
    texts: Sequence[str], tokenizer: Tokenizer, scratch: Path, settings: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bursts of short texts, without and with a long one just before, in turns; then the overload."""
    checkpoint, repository = scratch / "bursts", scratch / "bursts-repository"
    random_checkpoint(
        checkpoint, "base", settings.layers, settings.channels, tokenizer, texts[:40], schema=SCHEMA,
        vocabulary=tokenizer.get_vocab_size(),
    )  # fmt: skip
    export_checkpoint(checkpoint, repository)
    with LocalServer(repository) as server:
        port = server.ports["http"]
        with raw_load(burst_texts(texts, tokenizer), scratch) as load:
            bursts = {"precision": _precision(port)} | _measure_bursts(load, port, settings.pairs)
        with raw_load(texts, scratch) as load:
            rate = OVERLOAD * _throughput(load, port, settings.small_s)
            overload = _measure_overload(load, port, rate, settings.small_deadline_s, settings.small_s)
    return bursts, overload


def _measure_bursts(load: RawLoad, port: int, pairs: int) -> dict[str, Any]:
    alone: list[float] = []
    beside: list[float] = []
    long: list[float] = []
    for pair in range(pairs + 1):
        found = [load("burst", port=port, clients=SHORT_TEXTS, long=is_long) for is_long in (False, True)]
        if pair:  # the first one warms up
            for waits, burst in zip((alone, beside), found, strict=True):
                waits.append(round(statistics.median(burst["latencies_s"]) * 1e3, 2))
            long.append(round(found[1]["long_s"] * 1e3, 2))
            print(f"burst: {alone[-1]} ms alone, {beside[-1]} beside a long text, which took {long[-1]}", flush=True)
    ratios = [round(two / one, 3) for one, two in zip(alone, beside, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3), "ratio_all": ratios,
        "alone_ms": alone, "beside_ms": beside, "long_ms": long,
    }  # fmt: skip


def burst_texts(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Distinct texts of exactly 16 tokens, and as the last one a text that the model truncates at 1,024 tokens."""
    token_ids = [token for encoded in tokenizer.encode_batch(list(texts)) for token in encoded.ids]
    pieces = (token_ids[start : start + SHORT_TOKENS] for start in range(0, len(token_ids), SHORT_TOKENS))
    short: dict[str, None] = {}
    for piece in pieces:
        text = tokenizer.decode(piece)
        if len(tokenizer.encode(text).ids) == SHORT_TOKENS:
            short[text] = None
        if len(short) == SHORT_TEXTS:
            return [*short, tokenizer.decode(token_ids[-2 * LONG_TOKENS :])]
    raise SystemExit(f"the texts make {len(short)} distinct texts of {SHORT_TOKENS} tokens, not {SHORT_TEXTS}")


def _precision(port: int) -> str:
    body = {
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}],
        "outputs": [{"name": "SCHEMA"}],
    }
    request = urllib.request.Request(f"http://127.0.0.1:{port}{INFER}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as response:
        schema = json.loads(json.loads(response.read())["outputs"][0]["data"][0])
    return str(schema["precision"])


def _plot(points: Mapping[str, dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for (variant, measured), line in zip(points.items(), ("-", ":"), strict=False):
        places = range(len(measured["closed"]) + 1)
        for name, colour in PERCENTILES.items():
            *closed, half = [point[name] for point in [*measured["closed"], measured["half"]]]
            label = name.removesuffix("_ms").replace("p999", "p99.9") + (f", {variant}" if len(points) > 1 else "")
            axes.plot(places[:-1], closed, color=colour, marker="o", linestyle=line, label=label)
            axes.plot(places[-1], half, color=colour, marker="o" if line == "-" else "x")
        ticks = [str(point["clients"]) for point in measured["closed"]]
        axes.set_xticks(places, [*ticks, "open arrivals\nat half load"])
    axes.axhline(SLOW_MS, color=PURPLE, linewidth=0.8, linestyle="--", label=f"{SLOW_MS} ms")
    axes.set(title="Latency per request, one text each", xlabel="clients", ylabel="ms", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


if __name__ == "__main__":
    main()
