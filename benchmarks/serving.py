"""Serving speed: the real tritonserver, the engine alone, and the same model behind other servers.

All answer the same Debian texts with the same random weights of GPT-2's shape. Loads are closed, and always send all
texts a whole number of times, so that all figures are for the same tokens. All figures are medians of turns:

- ``server_over_engine``: the server's throughput at its best point, divided by the engine's in batches of 64.
- ``added_latency_ms``: what the server adds to a single text's latency, measured with perf_analyzer;
  ``added_latency_client_ms`` includes our client's own time.
- ``ratio_*``: the server's throughput divided by a peer's, with 16 clients that send single texts. Each peer runs in
  the best of its configurations.
- ``ratio_short_beside_long``: how much longer 63 short texts wait when one text of 1,024 tokens comes with them.

The queue's timeout is raised in the served copy, because full queues are measured here, and not shedding.
"""

from __future__ import annotations

import argparse
import itertools
import math
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.engine_alone import EngineAlone, engine_alone
from benchmarks.load import Connect, Load, Send, analyze, drive, median_load, passes_of, requests_of
from benchmarks.peers.servers import PEER_SERVERS, PEERS, PeerServer
from benchmarks.result import RESULTS, in_turns, machine
from benchmarks.workload import add_shape, read_texts, write_checkpoints
from loadtest.local_server import LocalServer
from loadtest.result import BLUE, GREEN, ORANGE, PURPLE, report
from polyhead.export import export_checkpoint
from polyhead_client import Client

ENGINE_BATCH = 64  # max_batch_size in config.pbtxt
PEER_CLIENTS = 16
SHORT_TEXTS = 63  # with one long text they fill a batch
QUEUE_TIMEOUT = 'key: "default_timeout_s" value { string_value: "'
COLOURS = {"fastapi": ORANGE, "infinity": PURPLE}
LINES = {"perf_analyzer": (BLUE, "o"), "client": (GREEN, "s")}

Point = Callable[[Sequence[str], int, int, int], Load]  # arguments: texts, texts per request, clients, passes


def main(options: Sequence[str] | None = None) -> None:
    """Measures start-up, engine, server and peers, and prints one JSON object as the last line."""
    names = [peer.name for peer in PEER_SERVERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/debian/test.jsonl"), help="JSON lines with a text")
    parser.add_argument("--out", type=Path, help="default: serving-DEVICE.json in the results folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the engine alone and the peers")
    parser.add_argument("--texts", type=int, default=128, help="number of distinct texts")
    parser.add_argument("--latency-texts", type=int, default=32, help="number of texts that are timed one by one")
    parser.add_argument("--window-s", type=float, default=10.0, help="about how long each point takes, in seconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-repeats", type=int, default=9, help="the latency of single texts varies the most")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--texts-a-request", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--loads", nargs="+", choices=LINES, default=list(LINES), help="load generators")
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--perf-analyzer", type=Path, default=PEERS / "perf_analyzer" / "perf_analyzer")
    add_shape(parser)
    settings = parser.parse_args(options)
    settings.out = settings.out or RESULTS / f"serving-{settings.device}.json"
    texts = read_texts(settings.data)
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
        repository, theirs = Path(scratch) / "repository", Path(scratch) / "transformers"
        tokenizer = write_checkpoints(settings, texts, Path(scratch) / "polyhead", theirs)
        version = export_checkpoint(Path(scratch) / "polyhead", repository)
        _raise_queue_timeout(version.parent / "config.pbtxt")
        startup = _measure_startup(repository, settings.repeats)
        product = _measure_product(repository, version / "checkpoint", texts, settings)
        asked = [peer for peer in PEER_SERVERS if peer.name in settings.peers]
        peers = {peer.name: _measure_peer(peer, theirs, texts[: settings.texts], settings) for peer in asked}
    tokens = [len(row.ids[: settings.max_length]) for row in tokenizer.encode_batch(texts[: settings.texts])]
    same_load = product.pop("same_load_as_peers")
    added = product["latency"]["added_ms"]
    summary: dict[str, Any] = {
        "server_over_engine": product["server_over_engine"],
        "added_latency_ms": added.get("perf_analyzer"),
        "added_latency_client_ms": added.get("client"),
        **{f"ratio_{name}": round(same_load["texts_s"] / peer["texts_s"], 2) for name, peer in peers.items()},
        "ratio_short_beside_long": product["short_texts_beside_a_long_one"]["ratio"],
        "startup_s": startup["median"],
    }
    details = {
        "mean_tokens": round(statistics.mean(tokens), 1),
        "startup": startup,
        "product": product,
        "peers": {"clients": PEER_CLIENTS, "texts_a_request": 1, "product": same_load, **peers},
    }
    report(settings, summary, details, _plot(product, peers), machine())


def _raise_queue_timeout(config: Path) -> None:
    before, found, after = config.read_text(encoding="utf-8").partition(QUEUE_TIMEOUT)
    if not found:
        raise SystemExit(f"{config}: has no {QUEUE_TIMEOUT!r}")
    config.write_text(f"{before}{found}600{after.lstrip('0123456789.')}", encoding="utf-8")


def _measure_startup(repository: Path, repeats: int) -> dict[str, Any]:
    """Seconds from the start of polyhead-serve to its line ``ready``, which it prints when a canary was answered."""
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        with LocalServer(repository):
            seconds.append(round(time.monotonic() - began, 2))
    print(f"start-up: {seconds} s", flush=True)
    return {"median": statistics.median(seconds), "all": seconds}


def _measure_product(
    repository: Path, checkpoint: Path, texts: Sequence[str], settings: argparse.Namespace
) -> dict[str, Any]:
    """Measures latency, all points, and then the best point in turns with the engine. The other one is always idle."""
    key = secrets.token_hex(16)
    with (
        engine_alone(checkpoint, settings.device) as engine,
        LocalServer(repository, environment={"POLYHEAD_ADMIN_KEY": key}) as served,
    ):
        connect = partial(_our_client, served.url("http"))
        known: dict[str, Point] = {
            "client": lambda sent, size, clients, passes: drive(connect, requests_of(sent, size, passes), clients),
            "perf_analyzer": partial(analyze, settings.perf_analyzer, served.url("http"), key),
        }
        loads = {name: known[name] for name in settings.loads}
        fewest = settings.texts
        rate = engine(requests_of(texts[:fewest], ENGINE_BATCH, 1)).texts_s
        latency = _added_latency(engine, loads, texts[: settings.latency_texts], settings.latency_repeats)
        rates = (rate, latency["rounds"]["engine"][0]["texts_s"])
        beside_long = _beside_long_text(connect, texts, settings.repeats)
        points = [
            _measure_point(name, load, size, clients, _texts_of_point(texts, fewest, size, clients), rates, settings)
            for size in settings.texts_a_request
            for clients in settings.clients
            for name, load in loads.items()
        ]
        best = max((point for point in points if "texts_s" in point), key=lambda point: point["texts_s"])
        size, clients = best["texts_a_request"], best["clients"]
        sent, few = _texts_of_point(texts, fewest, size, clients), texts[:fewest]
        passes = passes_of(sent, rate, settings.window_s)
        turns: dict[str, Callable[[], Load]] = {
            "engine": partial(engine, requests_of(sent, ENGINE_BATCH, passes)),
            "server": partial(loads[best["load"]], sent, size, clients, passes),
            "as_peers": partial(known["client"], few, 1, PEER_CLIENTS, passes_of(few, rate, settings.window_s)),
        }
        found = in_turns("best point", turns, settings.repeats)
    ratios = [
        round(server.texts_s / alone.texts_s, 3) for alone, server in zip(found["engine"], found["server"], strict=True)
    ]
    return {
        "server_over_engine": statistics.median(ratios),
        "server_over_engine_all": ratios,
        "latency": latency,
        "short_texts_beside_a_long_one": beside_long,
        "engine": median_load(found["engine"]),
        "server": {name: best[name] for name in ("load", "texts_a_request", "clients")} | median_load(found["server"]),
        "points": points,
        "same_load_as_peers": median_load(found["as_peers"]),
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


def _added_latency(engine: EngineAlone, loads: dict[str, Point], texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """What the server adds to the latency of a single text, by load: the difference of medians over the same texts."""
    for load in loads.values():
        load(texts[:4], 1, 1, 1)
    turns: dict[str, Callable[[], Load]] = {"engine": partial(engine, requests_of(texts, 1, 1))}
    turns |= {name: partial(load, texts, 1, 1, 1) for name, load in loads.items()}
    rounds = in_turns("single texts", turns, repeats)
    added = {
        name: [round(one.p50_ms - alone.p50_ms, 2) for one, alone in zip(rounds[name], rounds["engine"], strict=True)]
        for name in loads
    }
    return {
        "added_ms": {name: round(statistics.median(values), 2) for name, values in added.items()},
        "added_ms_all": added,
        "rounds": {name: [asdict(load) for load in measured] for name, measured in rounds.items()},
    }


def _beside_long_text(connect: Connect, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """How much longer short texts wait when a text of the model's greatest length comes first: ratio of medians."""
    short = [[text] for text in sorted(dict.fromkeys(texts), key=len)[:SHORT_TEXTS]]
    long = [" ".join(texts)[:20_000]]  # the model truncates it
    alone = partial(drive, connect, short, len(short))
    beside = partial(drive, connect, [long, *short], len(short) + 1)
    found = in_turns("short texts", {"alone": alone, "beside a long one": beside}, repeats)
    waits = [[one.p50_ms, two.p50_ms] for one, two in zip(*found.values(), strict=True)]
    ratios = [round(two / one, 2) for one, two in waits]
    return {"ratio": statistics.median(ratios), "ratio_all": ratios, "p50_ms_alone_and_beside": waits}


@contextmanager
def _our_client(url: str) -> Iterator[Send]:
    with Client(url, timeout_s=600) as client:
        yield client.classify


def _measure_peer(peer: PeerServer, model: Path, sent: Sequence[str], settings: argparse.Namespace) -> dict[str, Any]:
    """Tries each of a peer's configurations on a quarter of the texts, then measures the fastest."""
    few = requests_of(sent[: math.ceil(len(sent) / 4)], 1, 1)
    tried = {}
    for setting in peer.settings(settings.device):
        with peer.serving(model, settings.device, setting) as connect:
            drive(connect, few[:PEER_CLIENTS], PEER_CLIENTS)
            tried[setting] = drive(connect, few, PEER_CLIENTS).texts_s
        print(f"{peer.name} {' '.join(setting)}: {tried[setting]} texts/s", flush=True)
    best = max(tried, key=lambda setting: tried[setting])
    requests = requests_of(sent, 1, passes_of(sent, tried[best], settings.window_s))
    with peer.serving(model, settings.device, best) as connect:
        drive(connect, few[:PEER_CLIENTS], PEER_CLIENTS)
        measured = [drive(connect, requests, PEER_CLIENTS) for _ in range(settings.repeats)]
    print(f"{peer.name}: {[load.texts_s for load in measured]} texts/s", flush=True)
    configurations = {" ".join(setting): rate for setting, rate in tried.items()}
    return {"setting": " ".join(best)} | median_load(measured) | {"tried": configurations}


def _plot(product: dict[str, Any], peers: dict[str, dict[str, Any]]) -> Figure:
    figure, (rates, waits) = plt.subplots(1, 2, figsize=(11, 4.2))
    sizes = sorted({point["texts_a_request"] for point in product["points"]})
    for (name, (colour, marker)), size in itertools.product(LINES.items(), sizes):
        points = [p for p in product["points"] if (p["load"], p["texts_a_request"]) == (name, size) and "texts_s" in p]
        clients = [point["clients"] for point in points]
        single = size == 1
        style = {
            "color": colour, "marker": marker, "linestyle": "-" if single else "--",
            "fillstyle": "full" if single else "none",
        }  # fmt: skip
        rates.plot(clients, [p["texts_s"] for p in points], label=f"tritonserver, {name}, {size} per request", **style)
        waits.plot(clients, [p["p95_ms"] for p in points], **style)
    rates.axhline(product["engine"]["texts_s"], color="#444444", linestyle=":", label="engine alone, batches of 64")
    for name, peer in peers.items():
        rates.plot(PEER_CLIENTS, peer["texts_s"], "D", color=COLOURS[name], label=f"{name} {peer['setting']}")
        waits.plot(PEER_CLIENTS, peer["p95_ms"], "D", color=COLOURS[name])
    rates.set(title="Throughput", ylabel="texts/s", ylim=(0, None))
    waits.set(title="Latency per request, 95th percentile", ylabel="ms", yscale="log")
    ticks = sorted({point["clients"] for point in product["points"]} | {PEER_CLIENTS})
    for axes in (rates, waits):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("clients")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    main()
