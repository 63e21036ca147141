"""The dry run: what a config would train on what, with which memory and in how many steps. Nothing is written."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.checkpoint import check_output
from polyhead_training.config import FitConfig, TrainingConfig
from polyhead_training.data.corpus import read_corpus
from polyhead_training.data.description import describe_corpus
from polyhead_training.fitting.arguments import precision_of, trackers, training_arguments
from polyhead_training.fitting.prepared import parameter_counts, prepare
from polyhead_training.fitting.tokens import TokenRows
from polyhead_training.model.lora import add_adapters

QUANTILES = (50, 90, 95, 99, 100)


def dry_run(config: TrainingConfig, say: Callable[[str], None]) -> None:
    """Says the resolved config, the corpus, token lengths, parameters, estimated memory and steps.

    Raises:
        What `polyhead_training.fitting.fit.fit` raises before training.
    """
    if config.output.exists():
        check_output(config.output)
    trackers(config.training.report_to, config.output)
    with tempfile.TemporaryDirectory(prefix="polyhead-dry-run-") as scratch:
        arguments = training_arguments(config, Path(scratch) / "checkpoints")
        say(json.dumps(config.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False))
        corpus = read_corpus(config.data, config.heads, Path(scratch), config.seed)
        for line in describe_corpus(corpus):
            say(line)
        prepared = prepare(config, corpus, Path(scratch), lambda _: None)
        for note in prepared.notes:
            say(note)
        model = prepared.fitted.model
        if config.lora is not None:
            add_adapters(model, config.lora, config.training.freeze_layers)
        total, trained = parameter_counts(model)
        say(_describe_lengths(prepared.train))
        say(f"parameters: {total:,} in total, {trained:,} trained")
        tokens = prepared.train.read / len(prepared.train.rows) * config.training.batch_size
        memory = estimate_memory(config.training, model.config, total, trained, tokens)
        parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in memory.items())
        say(f"memory a process, estimated: {sum(memory.values()) / 2**20:,.1f} MiB ({parts})")
        a_epoch, steps, evaluations = count_steps(config.training, len(prepared.train.rows), arguments.world_size)
        say(f"steps: {steps:,} ({a_epoch:,} an epoch), {evaluations:,} evaluations")


def _describe_lengths(train: TokenRows) -> str:
    values = np.percentile(train.lengths, QUANTILES, method="higher")
    names = [f"p{quantile}" if quantile < 100 else "max" for quantile in QUANTILES]
    quantiles = ", ".join(f"{name} {value:.0f}" for name, value in zip(names, values, strict=True))
    share = train.truncated / len(train.lengths)
    return f"tokens a text: {quantiles}; {share:.1%} are longer than max_length ({train.max_length}) and truncated"


def estimate_memory(
    fit: FitConfig, body: Any, parameters: int, trained: int, tokens_a_batch: float
) -> dict[str, float]:
    """Bytes by what they are for, without what libraries and fragmentation take.

    float32 weights; for each trained one a float32 gradient and AdamW's two moments. Activations: 17 values of n_embd a
    token and block (Korthikanti et al. 2022, arXiv:2205.05198, without the attention matrix, which the kernels do not
    keep), of 2 bytes under bf16 and fp16, else 4; with gradient checkpointing one a block and 17 for a single one.
    """
    values = 17 * body.n_layer if not fit.gradient_checkpointing else body.n_layer + 17
    value_size = 4 if precision_of(fit) == "fp32" else 2
    return {
        "parameters": 4.0 * parameters,
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
        "activations": tokens_a_batch * values * body.n_embd * value_size,
    }


def count_steps(fit: FitConfig, rows: int, processes: int) -> tuple[int, int, int]:
    """Steps an epoch, steps in total, and evaluations, as the Trainer will count them."""
    batches = math.ceil(math.ceil(rows / fit.batch_size) / processes)
    a_epoch = math.ceil(batches / fit.gradient_accumulation_steps)
    steps = fit.max_steps or math.ceil(fit.epochs * a_epoch)
    return a_epoch, steps, math.ceil(steps / (fit.eval_steps or a_epoch))
