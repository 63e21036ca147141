"""The dry run: describes the data, the model, its memory and the number of steps. Nothing is written."""

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
from polyhead_training.data.corpus import describe_corpus, read_corpus
from polyhead_training.fitting.arguments import precision_of, trackers, training_arguments
from polyhead_training.fitting.preparation import TokenRows, parameter_counts, prepare
from polyhead_training.model.layers import add_adapters

QUANTILES = (50, 90, 95, 99, 100)


def dry_run(config: TrainingConfig, say: Callable[[str], None]) -> None:
    """Says the config with its defaults, the corpus, token lengths, parameters, estimated memory and steps.

    Raises:
        PolyheadError: as `polyhead_training.fitting.fit.fit` raises it before training.
    """
    if config.output.exists():
        check_output(config.output)
    trackers(config.training.report_to, config.output)
    with tempfile.TemporaryDirectory(prefix="polyhead-dry-run-") as scratch:
        arguments = training_arguments(config, Path(scratch) / "checkpoints")
        say(json.dumps(config.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False))
        corpus = read_corpus(config.data, config.heads, Path(scratch), config.seed, show_progress=True)
        for line in describe_corpus(corpus):
            say(line)
        prepared = prepare(config, corpus, Path(scratch), lambda _: None, show_progress=True)
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
        say(f"memory per process, estimated: {sum(memory.values()) / 2**20:,.1f} MiB ({parts})")
        per_epoch, steps, evaluations = count_steps(config.training, len(prepared.train.rows), arguments.world_size)
        say(f"steps: {steps:,} ({per_epoch:,} per epoch), {evaluations:,} evaluations")


def _describe_lengths(train: TokenRows) -> str:
    values = np.percentile(train.lengths, QUANTILES, method="higher")
    names = [f"p{quantile}" if quantile < 100 else "max" for quantile in QUANTILES]
    quantiles = ", ".join(f"{name} {value:.0f}" for name, value in zip(names, values, strict=True))
    share = train.truncated / len(train.lengths)
    return f"tokens per text: {quantiles}; {share:.1%} are longer than max_length ({train.max_length}) and truncated"


def estimate_memory(
    fit: FitConfig, body: Any, parameters: int, trained: int, tokens_per_batch: float
) -> dict[str, float]:
    """Bytes by purpose, without the overhead of libraries and fragmentation.

    Weights are float32. Each trained weight has a float32 gradient and AdamW's two moments. Activations are 17 values
    of n_embd per token and block (Korthikanti et al. 2022, arXiv:2205.05198, without the attention matrix, which the
    kernels do not keep), of 2 bytes in bf16 and fp16 and 4 in fp32. With gradient checkpointing they are one value per
    block, and 17 for one block at a time.
    """
    values = 17 * body.n_layer if not fit.gradient_checkpointing else body.n_layer + 17
    value_size = 4 if precision_of(fit) == "fp32" else 2
    return {
        "parameters": 4.0 * parameters,
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
        "activations": tokens_per_batch * values * body.n_embd * value_size,
    }


def count_steps(fit: FitConfig, rows: int, processes: int) -> tuple[int, int, int]:
    """Steps per epoch, steps in total, and evaluations, as the Trainer counts them."""
    batches = math.ceil(math.ceil(rows / fit.batch_size) / processes)
    per_epoch = math.ceil(batches / fit.gradient_accumulation_steps)
    steps = fit.max_steps or math.ceil(fit.epochs * per_epoch)
    return per_epoch, steps, math.ceil(steps / (fit.eval_steps or per_epoch))
