"""Bulk scoring on one node: texts a second of polyhead-score beside the engine's own, on the same texts and threads.

``engine`` is handed token ids and gives logits, nothing else. ``score`` is one actor with as many threads, from a JSONL
file to Parquet: reading, tokens, engine, decoding, writing, Ray. Its rate counts from its first finished partition to
its last, so that what it takes to start Ray and a process is left out; ``score_with_start`` is the rate with all that.
The model has GPT-2 small's shape and random weights, or is that of ``--checkpoint``. The smaller it is, the more of the
time goes to what is not the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.result import RESULTS, write_result
from benchmarks.workload import TOKENIZER_VOCAB_SIZE, random_checkpoint
from polyhead.checkpoint import read_checkpoint
from polyhead.encode import encode
from polyhead.predictor import Predictor
from polyhead_scoring.bulk import score_all
from polyhead_scoring.cluster import connected
from polyhead_scoring.request import Request, prepare
from polyhead_scoring.run import make_plan
from polyhead_training.model.tokenizer import train_tokenizer

COLOURS = {"engine": "#c8553d", "score": "#2a6fbb", "score_with_start": "#9dbfe0"}


def main(options: Sequence[str] | None = None) -> None:
    """Runs both in turns and prints one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a trained one, instead of one with random weights")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--data", type=Path, default=Path("data/debian/test.jsonl"), help="JSONL with a column text")
    parser.add_argument("--out", type=Path, default=RESULTS / "scoring.json")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--partition-tokens", type=int, default=4_000)
    arguments = parser.parse_args(options)
    runs: dict[str, list[float]] = {name: [] for name in COLOURS}
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
        texts = _texts(arguments.data, arguments.rows)
        data = Path(scratch) / "texts.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = Path(scratch) / "checkpoint"
            tokenizer = train_tokenizer(texts, TOKENIZER_VOCAB_SIZE)
            random_checkpoint(
                checkpoint, "base", arguments.layers, arguments.channels, tokenizer, texts, max_length=256
            )  # fmt: skip
        body = read_checkpoint(checkpoint).body
        for repeat in range(arguments.repeats):
            runs["engine"].append(
                _engine(checkpoint, texts, arguments.threads, max(1, arguments.partition_tokens // 100))
            )
            output = Path(scratch) / f"scored-{repeat}"
            rate, with_start = _score(checkpoint, data, output, arguments)
            runs["score"].append(rate)
            runs["score_with_start"].append(with_start)
            print(f"repeat {repeat + 1}: { {name: round(rates[-1], 1) for name, rates in runs.items()} }", flush=True)
    medians = {name: statistics.median(rates) for name, rates in runs.items()}
    summary = {
        "score_over_engine": round(medians["score"] / medians["engine"], 3),
        "score_over_engine_with_start": round(medians["score_with_start"] / medians["engine"], 3),
    }
    settings = {"rows": len(texts), "threads": arguments.threads, "partition_tokens": arguments.partition_tokens}
    measured: dict[str, Any] = {
        "texts_s": {name: round(median, 1) for name, median in medians.items()},
        "texts_s_all": {name: [round(rate, 1) for rate in rates] for name, rates in runs.items()},
        "model": body.model_dump(include={"n_layer", "n_embd", "vocab_size"}),
        "settings": settings | {"repeats": arguments.repeats, "ray": version("ray")},
    }
    write_result(arguments.out, summary | measured, _plot(medians))
    print(json.dumps(summary))


def _texts(data: Path, rows: int) -> list[str]:
    with data.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(rows), strict=False)]


def _engine(checkpoint: Path, texts: list[str], threads: int, batch: int) -> float:
    """The better of all texts at once and as many at a time as a partition has: small batches stay in the caches."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    predictor = Predictor.load(checkpoint)
    ids = [text.token_ids for text in encode(texts, predictor.checkpoint.tokenizer, predictor.max_length)]
    engine = predictor._engine
    engine.logits(ids[: max(1, len(ids) // 20)])  # the first call of a process is slow
    rates = []
    for size in (len(ids), batch):
        started = time.perf_counter()
        for start in range(0, len(ids), size):
            engine.logits(ids[start : start + size])
        rates.append(len(ids) / (time.perf_counter() - started))
    torch.set_num_threads(before)
    return max(rates)


def _score(checkpoint: Path, data: Path, output: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Rows a second between the first and the last finished partition, and from before Ray's start to its end."""
    request = Request(
        checkpoint=checkpoint, data=(str(data),), output=str(output), actors=1, cpus_per_actor=arguments.threads,
        partition_tokens=arguments.partition_tokens,
    )  # fmt: skip
    started = time.perf_counter()
    job, read, folder = prepare(request)
    folder.begin(job, restart=False)
    done, times = [], []
    with connected("local"):
        partitions, kept = make_plan(job, read, folder)
        for finished in score_all(request, job, kept, folder.name, partitions):
            done.append(finished)
            times.append(time.perf_counter())
    manifest = folder.finish(job, read.schema, partitions, {finished.number: finished for finished in done})
    if manifest["errors"] or len(done) < 3:
        raise SystemExit(f"{len(done)} partitions with {manifest['errors']} errors: nothing to measure")
    rate = (manifest["rows"] - done[0].rows) / (times[-1] - times[0])
    return rate, manifest["rows"] / (time.perf_counter() - started)


def _plot(medians: dict[str, float]) -> Figure:
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    bars = axes.bar(list(medians), list(medians.values()), 0.6, color=list(COLOURS.values()))
    axes.bar_label(bars, [f"{height:,.0f}" for height in medians.values()], fontsize=8)
    axes.set(title="Bulk scoring on one node", ylabel="texts/s")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
