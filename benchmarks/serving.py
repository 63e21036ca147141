"""Serving speed: the real tritonserver beside the engine alone, and beside the same model behind other servers.

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
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.load import drive, median_load, passes_of, requests_of
from benchmarks.peers.servers import PEER_SERVERS, PEERS, PeerServer
from benchmarks.result import RESULTS, write_result
from benchmarks.serving_product import PEER_CLIENTS, measure_product, measure_startup
from benchmarks.workload import add_shape, write_checkpoints
from polyhead.export import export_checkpoint

QUEUE_TIMEOUT = "default_timeout_microseconds: "
COLOURS = {"fastapi": "#e0a458", "infinity": "#8e7cc3"}
LINES = {"perf_analyzer": ("#2a6fbb", "o"), "client": ("#6aa84f", "s")}


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
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--texts-a-request", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--loads", nargs="+", choices=LINES, default=list(LINES), help="load generators")
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--perf-analyzer", type=Path, default=PEERS / "perf_analyzer" / "perf_analyzer")
    add_shape(parser)
    settings = parser.parse_args(options)
    settings.out = settings.out or RESULTS / f"serving-{settings.device}.json"
    lines = settings.data.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    texts = [json.loads(line)["text"] for line in lines]
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
        repository, theirs = Path(scratch) / "repository", Path(scratch) / "transformers"
        tokenizer = write_checkpoints(settings, texts, Path(scratch) / "polyhead", theirs)
        version = export_checkpoint(Path(scratch) / "polyhead", repository)
        _raise_queue_timeout(version.parent / "config.pbtxt")
        startup = measure_startup(repository, settings.repeats)
        product = measure_product(repository, version / "checkpoint", texts, settings)
        peers = {
            peer.name: _measure(peer, theirs, texts, settings) for peer in PEER_SERVERS if peer.name in settings.peers
        }
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
        "settings": {name: value for name, value in vars(settings).items() if not isinstance(value, Path)},
        "mean_tokens": round(statistics.mean(tokens), 1),
        "startup": startup,
        "product": product,
        "peers": {"clients": PEER_CLIENTS, "texts_a_request": 1, "product": same_load, **peers},
    }
    write_result(settings.out, summary | details, _plot(product, peers))
    print(json.dumps(summary))


def _raise_queue_timeout(config: Path) -> None:
    before, found, after = config.read_text(encoding="utf-8").partition(QUEUE_TIMEOUT)
    if not found:
        raise SystemExit(f"{config}: has no {QUEUE_TIMEOUT!r}")
    config.write_text(f"{before}{found}600000000{after.lstrip('0123456789')}", encoding="utf-8")


def _measure(peer: PeerServer, model: Path, texts: Sequence[str], settings: argparse.Namespace) -> dict[str, Any]:
    """Tries each of a peer's configurations on a quarter of the texts, then measures the fastest."""
    sent = texts[: settings.texts]
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
    figure, (rates, waits) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for (name, (colour, marker)), size in ((line, size) for line in LINES.items() for size in _sizes(product)):
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
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _sizes(product: dict[str, Any]) -> list[int]:
    return sorted({point["texts_a_request"] for point in product["points"]})


if __name__ == "__main__":
    main()
