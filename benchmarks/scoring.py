"""Bulk scoring on one machine: texts per second of polyhead-score and of the engine alone, on the same texts.

``engine`` gets token ids and gives logits, nothing else. ``here`` is polyhead-score with the engine in its process,
``ray`` with one actor that has as many threads; both read a JSON lines file, make tokens, compute, decode and write
Parquet. Their rates count from the first finished partition to the last, which leaves out how long Ray, a process and
the model take to start; the ``_with_start`` rates have all that. The model has GPT-2 small's shape and random weights,
or is that of ``--checkpoint``. The smaller it is, the more of the time is spent outside the engine.
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
from rich.console import Console

from benchmarks.result import RESULTS, write_result
from benchmarks.workload import TOKENIZER_VOCAB_SIZE, random_checkpoint
from polyhead.checkpoint import read_checkpoint
from polyhead.encode import encode
from polyhead.predictor import Predictor
from polyhead_scoring.cluster import connected
from polyhead_scoring.job import Request, describe_file, job_of
from polyhead_scoring.run import checkpoint_model, make_plan, score_partitions
from polyhead_scoring.run_folder import RunFolder
from polyhead_scoring.scorer import output_schema
from polyhead_training.model.tokenizer import train_tokenizer

COLOURS = {
    "engine": "#c8553d", "here": "#2a6fbb", "here_with_start": "#9dbfe0", "ray": "#8e7cc3", "ray_with_start": "#cfc6e6",
}  # fmt: skip


def main(options: Sequence[str] | None = None) -> None:
    """Runs all three in turns and prints one JSON object last."""
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
            for way, address in (("here", None), ("ray", "local")):
                output = Path(scratch) / f"scored-{way}-{repeat}"
                rate, with_start = _score(checkpoint, data, output, address, arguments)
                runs[way].append(rate)
                runs[f"{way}_with_start"].append(with_start)
            print(f"repeat {repeat + 1}: { {name: round(rates[-1], 1) for name, rates in runs.items()} }", flush=True)
    medians = {name: statistics.median(rates) for name, rates in runs.items()}
    summary = {
        "score_over_engine": round(medians["here"] / medians["engine"], 3),
        "score_over_engine_with_start": round(medians["here_with_start"] / medians["engine"], 3),
        "ray_over_engine": round(medians["ray"] / medians["engine"], 3),
        "ray_over_engine_with_start": round(medians["ray_with_start"] / medians["engine"], 3),
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
    """The better of two: all texts at once, or as many as a partition has, because small batches stay in the caches."""
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


def _score(
    checkpoint: Path, data: Path, output: Path, address: str | None, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Rows per second between the first and the last finished partition, and from the very beginning to the end."""
    request = Request(
        data=(str(data),), output=str(output), checkpoint=checkpoint, address=address, actors=1,
        cpus_per_actor=arguments.threads, partition_tokens=arguments.partition_tokens,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    model = checkpoint_model(request)
    folder = RunFolder(str(output), one_file=False)
    job = job_of(request, (describe_file(str(data)),), model.answers_from, one_file=False)
    folder.begin(job, restart=False)
    done, times = [], []
    with connected(address or ""):
        partitions, kept = make_plan(request, job, model, folder, Console(quiet=True))
        for finished in score_partitions(request, job, model, kept, folder, partitions):
            done.append(finished)
            times.append(time.perf_counter())
    numbered = {finished.number: finished for finished in done}
    manifest = folder.finish(job, model.heads, output_schema(kept, model.heads, job), partitions, numbered)
    torch.set_num_threads(before)
    if manifest["errors"] or len(done) < 3:
        raise SystemExit(f"{len(done)} partitions with {manifest['errors']} errors: nothing to measure")
    rate = (manifest["rows"] - done[0].rows) / (times[-1] - times[0])
    return rate, manifest["rows"] / (time.perf_counter() - started)


def _plot(medians: dict[str, float]) -> Figure:
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    bars = axes.bar(list(medians), list(medians.values()), 0.6, color=list(COLOURS.values()))
    axes.bar_label(bars, [f"{height:,.0f}" for height in medians.values()], fontsize=8)
    axes.set(title="Bulk scoring on one machine", ylabel="texts/s")
    axes.tick_params(axis="x", labelrotation=20)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
