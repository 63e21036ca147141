"""The engine and its peers: texts and tokens per second on the same texts, weights and machine.

A GPT-2 with random weights and 64 labels reads Debian texts in their own mix of lengths, and texts of one length. All
peers are measured in turns, and the figures are medians. The scores of each peer must be transformers' fp32 scores,
within what rounding in its precision explains; otherwise the run fails. Run it in .venv-peers, which has the peers.
Results are kept per processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.peers.engines import PLAIN, PRODUCT, PRODUCTS, builders, line_up
from benchmarks.peers.peer import Peer, compare, reference_logits
from benchmarks.result import RESULTS, in_turns, machine
from benchmarks.speed import SHAPES, GemmPeak, linear_flops, median_s
from benchmarks.workload import TokenIds, debian_corpus, of_length, random_checkpoint
from loadtest.result import BLUE, RED, report
from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.engine import fastest_precision

DEBIAN = "debian"
# HiddenStateConcat adds a gather and a wider head to the same body, so the product and a few peers are enough.
CONCAT_PEERS = {
    "cpu": (PRODUCT, PLAIN["cpu"], "openvino"),
    "cuda": (PRODUCT, PLAIN["cuda"], "transformers_bf16_sorted"),
}
SINGLE_TEXT_TOKENS = 16
PACKED_TOKENS = (1_000, 4_000, 16_000, 32_000, 64_000)

Table = dict[str, dict[str, dict[str, dict[str, Any]]]]  # architecture, mix, peer


def main(options: Sequence[str] | None = None) -> None:
    """Measures every mix on both architectures and prints one JSON object as the last line."""
    arguments = _arguments(options)
    device = arguments.device
    texts, tokenizer, token_ids = debian_corpus(arguments.data)
    mixes = {DEBIAN: token_ids[: arguments.texts]}
    mixes |= {str(length): of_length(length, arguments.tokens, token_ids) for length in arguments.lengths}
    table: Table = {}
    left_out: dict[str, dict[str, str]] = {}
    found: dict[str, Any] = {}
    for architecture in arguments.architectures:
        names = arguments.peers if architecture == "base" else arguments.concat_peers
        with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
            path = Path(scratch) / "checkpoint"
            random_checkpoint(path, architecture, arguments.layers, arguments.channels, tokenizer, texts)
            checkpoint = read_checkpoint(path)
            peers, missing = line_up(checkpoint, device, names)
            not_asked = {name: "not asked for" for name in builders(device) if name not in names}
            left_out[architecture] = missing | not_asked
            gemm = GemmPeak(peers[0].precision, device, SHAPES[device]) if architecture == "base" else None
            table[architecture] = {
                mix: _measure(f"{architecture}, {mix}", checkpoint, peers, ids, arguments, gemm)
                for mix, ids in mixes.items()
            }
            if gemm:
                found = _beside_gemm(gemm, table["base"][DEBIAN][PRODUCT]["tok_s"], peers[0], checkpoint, token_ids)
    tokens = {mix: sum(map(len, ids)) for mix, ids in mixes.items()}
    details = {"device": device, "tokens": tokens, "left_out": left_out, "table": table}
    report(arguments, _summary(table["base"][DEBIAN], device) | found, details, _plot(table["base"]), machine())


def _arguments(options: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/debian"), help="folder of polyhead-dataset debian")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="default: engine-PROCESSOR.json in the results folder")
    parser.add_argument("--texts", type=int, help="Debian texts per repeat; default: as many as take a few seconds")
    parser.add_argument("--tokens", type=int, help="tokens per repeat at each fixed length; default: likewise")
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 128, 512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--architectures", nargs="+", default=["base", "hidden_state_concat"])
    parser.add_argument("--peers", nargs="+", help="peers of the base architecture; default: all")
    parser.add_argument("--concat-peers", nargs="+", help="peers of hidden_state_concat; default: a few")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--channels", type=int, default=768)
    arguments = parser.parse_args(options)
    if "base" not in arguments.architectures:
        parser.error("--architectures: must include base, because the ratios are computed for it")
    arguments.out = arguments.out or RESULTS / f"engine-{processor(arguments.device)}.json"
    size = "cuda" if arguments.device == "cuda" else fastest_precision(torch.device("cpu"))
    arguments.texts = arguments.texts or {"cuda": 2048, "bf16": 256, "fp32": 48}[size]
    arguments.tokens = arguments.tokens or {"cuda": 65_536, "bf16": 8192, "fp32": 4096}[size]
    # The product comes first, because the others are compared with it.
    arguments.peers = [PRODUCT, *(name for name in arguments.peers or builders(arguments.device) if name != PRODUCT)]
    arguments.concat_peers = arguments.concat_peers or list(CONCAT_PEERS[arguments.device])
    return arguments


def processor(device: str) -> str:
    """What this machine computes with, as a part of a file's name: ``avx2``, ``avx512``, ``amx``; on CUDA ``h100``.

    Each has a file of its own, so a run keeps what was measured on another.
    """
    if device == "cuda":
        words = torch.cuda.get_device_name().lower().replace("-", " ").split()
        return next((word for word in words if any(map(str.isdigit, word))), words[-1])
    return "amx" if torch.cpu._is_amx_tile_supported() else torch.backends.cpu.get_cpu_capability().lower()


def _measure(
    title: str,
    checkpoint: Checkpoint,
    peers: Sequence[Peer],
    token_ids: TokenIds,
    arguments: argparse.Namespace,
    gemm: GemmPeak | None,
) -> dict[str, dict[str, Any]]:
    """Measures every peer on one mix, in turns: its speed, and how far its scores are from transformers in fp32."""
    tokens = sum(map(len, token_ids))
    reference = reference_logits(checkpoint, token_ids, arguments.device)
    for peer in peers:
        peer.warm_up(token_ids)
    agreement: dict[str, dict[str, Any]] = {}

    def tok_s(peer: Peer) -> float:
        started = time.perf_counter()
        logits = peer.logits(token_ids)
        rate = round(tokens / (time.perf_counter() - started), 1)
        agreement[peer.name] = compare(f"{title}, {peer.name}", peer.precision, logits, reference)
        return rate

    turns: dict[str, Callable[[], float]] = {peer.name: partial(tok_s, peer) for peer in peers}
    if gemm:
        turns["GEMM (GFLOP/s)"] = gemm.measure
    rates = in_turns(f"{title} (tok/s)", turns, arguments.repeats)
    return {
        peer.name: {
            "texts_s": round(statistics.median(rates[peer.name]) * len(token_ids) / tokens, 2),
            "tok_s": round(statistics.median(rates[peer.name]), 1),
            "tok_s_all": rates[peer.name],
            "precision": peer.precision,
            "batch_size": peer.batch_size,
            **agreement[peer.name],
        }
        for peer in peers
    }


def _beside_gemm(
    gemm: GemmPeak, tok_s: float, product: Peer, checkpoint: Checkpoint, token_ids: TokenIds
) -> dict[str, Any]:
    """The product's fraction of the GEMM peak, on CUDA also by packed tokens, and its time for one short text."""
    rates = gemm.gflops()
    peak = max(rates.values())
    gflop = linear_flops(checkpoint.body) / 1e9
    short = of_length(SINGLE_TEXT_TOKENS, SINGLE_TEXT_TOKENS, token_ids)
    found: dict[str, Any] = {
        "gemm_peak_gflops": peak,
        "gemm_peaks": rates,
        "gemm_gflops": round(tok_s * gflop, 1),
        "gemm_fraction": round(tok_s * gflop / peak, 3),
        "single_text_ms": round(1000 * _warm_median_s(product, short, 200 if gemm.device == "cuda" else 10), 3),
    }
    if gemm.device == "cuda":
        found["gemm_fraction_by_tokens"] = {}
        for tokens in PACKED_TOKENS:
            batch = token_ids[: max(1, tokens * len(token_ids) // sum(map(len, token_ids)))]
            rate = sum(map(len, batch)) / _warm_median_s(product, batch, 10)
            found["gemm_fraction_by_tokens"][str(tokens)] = round(rate * gflop / peak, 3)
    return found


def _warm_median_s(peer: Peer, token_ids: TokenIds, calls: int) -> float:
    median_s(lambda: peer.logits(token_ids), 3)
    return median_s(lambda: peer.logits(token_ids), calls)


def _summary(measured: dict[str, dict[str, Any]], device: str) -> dict[str, Any]:
    """The figures of the last line, for the base architecture on the Debian texts.

    ``ratio_best_peer`` compares the product in its fastest precision with the fastest peer in any precision, and
    ``ratio_by_precision`` with the fastest peer in the same precision.
    """
    speed = {name: row["tok_s"] for name, row in measured.items()}
    ours = {name: rate for name, rate in speed.items() if name in PRODUCTS}
    others = {name: rate for name, rate in speed.items() if name not in PRODUCTS}
    best = max(others, key=lambda name: others[name], default=None)
    plain = others.get(PLAIN[device])
    ratios = {}
    for name, rate in ours.items():
        precision = measured[name]["precision"]
        alike = [others[other] for other in others if measured[other]["precision"] == precision]
        if alike:
            ratios[precision] = round(rate / max(alike), 2)
    return {
        "texts_s": {name: row["texts_s"] for name, row in measured.items()},
        "tok_s": speed,
        "best_peer": best,
        "ratio_best_peer": round(max(ours.values()) / others[best], 2) if best else None,
        "ratio_by_precision": ratios,
        "ratio_hf": round(speed[PRODUCT] / plain, 2) if plain else None,
        "precision": measured[PRODUCT]["precision"],
    }


def _plot(mixes: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """Draws tokens per second by peer on the Debian texts, and grouped by length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5))
    speed = {name: row["tok_s"] for name, row in mixes[DEBIAN].items()}
    names = sorted(speed, key=lambda name: speed[name])
    colours = [BLUE if name in PRODUCTS else RED for name in names]
    left.bar_label(left.barh(names, [speed[name] for name in names], color=colours), fmt="{:,.0f}", padding=3)
    left.set(title="Debian texts, their own mix of lengths", xlabel="real tokens/s")
    lengths = [mix for mix in mixes if mix != DEBIAN]
    width = 0.85 / len(names)
    shades = plt.get_cmap("tab20")
    for place, name in enumerate(reversed(names)):
        at = [x + width * (place - (len(names) - 1) / 2) for x in range(len(lengths))]
        right.bar(at, [mixes[mix][name]["tok_s"] for mix in lengths], width, label=name, color=shades(place))
    right.set_xticks(range(len(lengths)), [f"{length} tokens" for length in lengths])
    right.set(title="Texts of one length", ylabel="tokens/s")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    main()
