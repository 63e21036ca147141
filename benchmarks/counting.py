"""What counting answers costs (docs/watch.md): CPU time per text of the model's work, with and without counting.

Both are measured in turns. The difference is smaller than the noise of most machines, so counting is also measured
alone: finding scripts, keeping scores until they are counted, and counting them. Messages to Triton are counted, not
sent; ``polyhead_serving.answer_metrics`` bounds their time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from matplotlib import pyplot as plt

import polyhead.encode
from benchmarks.result import RESULTS, in_turns, write_result
from benchmarks.workload import debian_corpus, random_checkpoint
from polyhead.answer_counter import AnswerCounter
from polyhead.decode import DecodeOptions
from polyhead.predictor import Predictor
from polyhead.scripts import scripts_of
from polyhead_serving.answer_metrics import AnswerMetrics

BATCH = 64
MODELS = {"2 layers of 192": (2, 192), "GPT-2 small": (12, 768)}
MAX_LENGTH = 256
LABELS = {"model": "m", "version": "1"}


class Messages:
    """Takes the place of ``pb_utils.MetricFamily`` and of its metrics."""

    COUNTER, GAUGE = range(2)

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, **_: object) -> Messages:
        """A family, and itself."""
        return self

    def Metric(self, labels: dict[str, str]) -> Messages:  # noqa: N802 - Triton's name
        """Itself."""
        return self

    def increment(self, _: int) -> None:
        """Counts a message."""
        self.sent += 1


def main(options: Sequence[str] | None = None) -> None:
    """Measures all models and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/debian"))
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "counting.json")
    arguments = parser.parse_args(options)
    texts, tokenizer, _ = debian_corpus(arguments.data)
    found: dict[str, Any] = {}
    for name, (layers, channels) in MODELS.items():
        with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
            path = Path(scratch) / "checkpoint"
            random_checkpoint(path, "base", layers, channels, tokenizer, texts, max_length=MAX_LENGTH)
            found[name] = measure(Predictor.load(path), texts[: arguments.texts], arguments.repeats, name)
        print(f"{name}: {found[name]}", flush=True)
    figure, axes = plt.subplots(figsize=(6, 2.5))
    axes.barh(list(found), [100 * row["share_of_cpu"] for row in found.values()])
    axes.set_xlabel("counting, % of the CPU time per text")
    write_result(arguments.output, found, figure)


def measure(predictor: Predictor, texts: Sequence[str], repeats: int, name: str) -> dict[str, Any]:
    """Microseconds of CPU time per text, medians of repeats."""
    runs = {"counted": partial(work, predictor, texts, True), "uncounted": partial(work, predictor, texts, False)}
    for run in runs.values():
        run()  # warms up
    both = in_turns(name, runs, repeats)
    alone = statistics.median(counting_alone(predictor, texts) for _ in range(repeats))
    medians = {kind: statistics.median(values) for kind, values in both.items()}
    return {
        "texts": len(texts),
        "batch": BATCH,
        "precision": predictor.precision,
        "counted_us": round(medians["counted"], 1),
        "uncounted_us": round(medians["uncounted"], 1),
        "counting_alone_us": round(alone, 2),
        "share_of_cpu": round(alone / medians["uncounted"], 5),
    }


def work(predictor: Predictor, texts: Sequence[str], is_counted: bool) -> float:
    """What a model process does for the texts; with or without counting."""
    messages = Messages()
    metrics = AnswerMetrics(messages, LABELS, AnswerCounter(predictor.schema), None, print)
    if not is_counted:
        polyhead.encode.scripts_of = lambda texts: [""] * len(texts)  # type: ignore[attr-defined]
    began = time.process_time()
    try:
        for start in range(0, len(texts), BATCH):
            encoded = predictor.encode(texts[start : start + BATCH])
            scores = predictor.score(encoded)
            if is_counted:
                metrics.add(encoded, scores)
            for answer in predictor.decode(encoded, scores, DecodeOptions()):
                orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        metrics.close()
    finally:
        polyhead.encode.scripts_of = scripts_of  # type: ignore[attr-defined]
    return (time.process_time() - began) / len(texts) * 1e6


def counting_alone(predictor: Predictor, texts: Sequence[str]) -> float:
    """Only what counting adds; each text as a request of its own, which costs most."""
    encoded = predictor.encode(texts)
    scores = [predictor.score([text]) for text in encoded[:BATCH]] * (1 + len(texts) // BATCH)
    metrics = AnswerMetrics(Messages(), LABELS, AnswerCounter(predictor.schema), None, print)
    began = time.process_time()
    for start in range(0, len(texts), BATCH):
        scripts_of(texts[start : start + BATCH])
    for text, row in zip(encoded, scores, strict=False):
        metrics.add([text], row)
    metrics.close()
    return (time.process_time() - began) / len(texts) * 1e6


if __name__ == "__main__":
    main()
