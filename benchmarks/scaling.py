"""The engine's speed and memory by the number of tokens in a batch, and by the size of the model.

Each point is measured in a new process. ``growth_mib`` is the memory that the batch takes beyond the loaded model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from benchmarks.result import RESULTS, machine
from benchmarks.speed import linear_flops, measure_batch
from benchmarks.workload import TokenIds, debian_corpus, random_checkpoint
from loadtest.result import BLUE, report
from polyhead.checkpoint import read_checkpoint

GPT2_SMALL = "12x768"


def main(options: Sequence[str] | None = None) -> None:
    """Measures both curves and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/debian"), help="folder of polyhead-dataset debian")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="default: scaling-DEVICE.json in the results folder")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[64, 256, 1000, 4000, 16_000, 64_000])
    parser.add_argument("--model", default=GPT2_SMALL, help="model of the curve by tokens: layers x channels")
    parser.add_argument("--models", nargs="+", default=["2x256", "4x512", "6x768", GPT2_SMALL, "24x1024"])
    parser.add_argument("--model-tokens", type=int, default=4000, help="tokens per batch of the curve by model")
    parser.add_argument("--repeats", type=int, default=3, help="calls per point; one call from 16,000 tokens on")
    arguments = parser.parse_args(options)
    arguments.out = arguments.out or RESULTS / f"scaling-{arguments.device}.json"
    texts, tokenizer, token_ids = debian_corpus(arguments.data)
    by_tokens: list[dict[str, Any]] = []
    by_model: list[dict[str, Any]] = []
    for model in dict.fromkeys([arguments.model, *arguments.models]):
        sizes = arguments.batch_tokens if model == arguments.model else []
        with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
            checkpoint = Path(scratch) / "checkpoint"
            about = _write_model(checkpoint, model, tokenizer, texts)
            by_tokens += [about | _point(checkpoint, batch_of(size, token_ids), arguments) for size in sizes]
            if model in arguments.models:
                batch = batch_of(arguments.model_tokens, token_ids)
                by_model.append(about | _point(checkpoint, batch, arguments))
    by_model.sort(key=lambda point: point["linear_mflop_a_token"])
    for point in by_tokens + by_model:
        point["gemm_gflops"] = round(point["tok_s"] * point["linear_mflop_a_token"] / 1000, 1)
    summary = {
        f"{figure}_by_{axis}": {str(point[axis]): point[figure] for point in points}
        for axis, points in (("tokens", by_tokens), ("model", by_model))
        for figure in ("tok_s", "growth_mib")
    }
    details = {"device": arguments.device, "by_tokens": by_tokens, "by_model": by_model}
    report(arguments, summary, details, _plot(by_tokens, by_model), machine())


def batch_of(tokens: int, token_ids: TokenIds) -> TokenIds:
    """Texts with exactly this many tokens in all; the last text is cut."""
    batch: TokenIds = []
    for ids in token_ids:
        batch.append(ids[:tokens])
        tokens -= len(batch[-1])
        if not tokens:
            return batch
    raise SystemExit(f"the texts have {tokens} tokens too few")


def _write_model(path: Path, model: str, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    layers, channels = map(int, model.split("x"))
    random_checkpoint(path, "base", layers, channels, tokenizer, texts)
    checkpoint = read_checkpoint(path)
    return {
        "model": model,
        "parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "linear_mflop_a_token": round(linear_flops(checkpoint.body) / 1e6, 3),
    }


def _point(checkpoint: Path, batch: TokenIds, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one batch in a new process."""
    repeats = 1 if sum(map(len, batch)) >= 16_000 and arguments.device == "cpu" else arguments.repeats
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        measured = process.submit(measure_batch, checkpoint, batch, arguments.device, repeats).result()
    print(measured, flush=True)
    return measured


def _plot(by_tokens: Sequence[dict[str, Any]], by_model: Sequence[dict[str, Any]]) -> Figure:
    figure, panels = plt.subplots(2, 2, figsize=(11, 8))
    for column, (points, x, label) in enumerate(
        [(by_tokens, "tokens", "tokens in a batch"), (by_model, "linear_mflop_a_token", "MFLOP per token")]
    ):
        at = [point[x] for point in points]
        for axes, key, title in ((panels[0][column], "texts_s", "texts/s"), (panels[1][column], "growth_mib", "MiB")):
            heights = [point[key] for point in points]
            axes.plot(at, heights, "o-", color=BLUE)
            axes.set(xscale="log", xlabel=label, ylabel=title)
            axes.set_ylim(0, 1.15 * max(heights))  # room for the highest label
            for place, height, point in zip(at, heights, points, strict=True):
                name = f"{height:,.1f}" if points is by_tokens else f"{point['model']}: {height:,.1f}"
                axes.annotate(name, (place, height), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    model = by_tokens[0]["model"] if by_tokens else ""
    panels[0][0].set_title(f"Debian texts by batch size, model {model}")
    panels[0][1].set_title("Debian texts by model, layers x channels")
    panels[1][0].set_title("Memory that the batch takes beyond the loaded model")
    panels[1][1].set_title("The same by model")
    return figure


if __name__ == "__main__":
    main()
