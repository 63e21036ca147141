"""What a fit starts from: token rows, the tokenizer and the untrained model; and the dry run, which describes them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import set_seed

from polyhead.checkpoint import check_output
from polyhead.encode import encode
from polyhead.schema import Schema
from polyhead.windows import Windows
from polyhead_rows.progress import progress
from polyhead_training.config import FitConfig, TrainingConfig
from polyhead_training.data.corpus import Corpus, Split, read_corpus
from polyhead_training.data.description import describe_corpus
from polyhead_training.data.recipe import OUT_OF_SCOPE as SCOPE_COLUMN
from polyhead_training.data.sources import file_names
from polyhead_training.errors import DataError
from polyhead_training.evaluation.metrics import flat_scores
from polyhead_training.fitting.arguments import check_best_metric, precision_of, trackers, training_arguments
from polyhead_training.fitting.checkpoint_writing import Fitted, rehearse
from polyhead_training.fitting.optimizers import MUON, chosen_optimizer, describe_optimizer, muon_matrices
from polyhead_training.model.body import checkpoint_spec, model_tokenizer, untrained_model
from polyhead_training.model.layers import add_adapters, check_adapters, freeze
from polyhead_training.model.losses import OUT_OF_SCOPE, loss_terms
from polyhead_training.model.targets import with_target_scales

QUANTILES = (50, 90, 95, 99, 100)  # of text lengths


@dataclass(frozen=True)
class TokenRows:
    """A tokenized split.

    Attributes:
        rows: with columns ``input_ids`` (what is read), ``labels`` and ``length`` (computed tokens); memory-mapped.
        lengths: of all texts before truncation, in tokens.
        windows: how texts are cut.
    """

    rows: datasets.Dataset
    lengths: NDArray[np.int64]
    windows: Windows

    @property
    def left_out(self) -> int:
        """How many texts have no token, and therefore no row."""
        return int((self.lengths == 0).sum())

    @property
    def long(self) -> int:
        """How many texts are longer than a window."""
        return int((self.lengths > self.windows.length).sum())

    @property
    def truncated(self) -> int:
        """How many texts are longer than what is read."""
        return int((self.lengths > self.windows.reach).sum())

    @property
    def read(self) -> int:
        """How many tokens of all texts the model reads."""
        return int(np.minimum(self.lengths, self.windows.reach).sum())

    @property
    def computed(self) -> int:
        """How many tokens it computes for that: tokens in two windows count twice."""
        return sum(map(self.windows.computed, self.lengths.tolist()))


@dataclass(frozen=True)
class Prepared:
    """A tokenized corpus, and the untrained model with what describes it.

    Attributes:
        target_notes: lines about the numbers of regressions.
    """

    corpus: Corpus
    fitted: Fitted
    train: TokenRows
    validation: TokenRows
    target_notes: tuple[str, ...] = ()

    @property
    def validation_texts(self) -> list[str]:
        """The texts of the rows of `validation`."""
        lengths = self.validation.lengths
        return [text for text, length in zip(self.corpus.validation.texts, lengths, strict=True) if length]

    @property
    def notes(self) -> list[str]:
        """What the user should know about tokens and targets."""
        return [f"note: {note}" for note in self.target_notes] + [
            f"note: {rows.left_out} of {len(rows.lengths)} {name} texts are left out: text_transforms leave no token"
            for name, rows in (("train", self.train), ("validation", self.validation))
            if rows.left_out
        ]


def prepare(
    config: TrainingConfig,
    corpus: Corpus,
    scratch: Path,
    say: Callable[[str], None],
    tokenizer: Tokenizer | None = None,
    show_progress: bool = False,
) -> Prepared:
    """Builds and rehearses the model and tokenizes the rows.

    Args:
        tokenizer: of a run that continues; by default as the config says.

    Raises:
        ConfigError, DataError: here, not only after training.
    """
    if config.warm_start is not None and config.warm_start.texts:
        file_names(config.warm_start.texts)  # a name that matches nothing is an error at once
    labels = corpus.validation.labels
    schema, notes = with_target_scales(corpus.schema, corpus.train.labels)
    no_logits = np.zeros((len(labels), schema.width), dtype=np.float32)
    check_best_metric(config.training.best_metric, flat_scores(no_logits, labels, schema))
    if tokenizer is None:
        say("preparing the tokenizer")
        tokenizer = model_tokenizer(config.model, corpus.train.texts, config.data.text_transforms)
    set_seed(config.seed)
    spec = checkpoint_spec(config.model, config.data.text_template)
    model = untrained_model(config.model, spec, schema, tokenizer)
    is_balanced = any("balanced" in (head.class_weights, head.positive_weights) for head in config.heads)
    model.terms = loss_terms(schema, config.heads, corpus.train.labels if is_balanced else None)
    freeze(model, config.training.freeze_layers)
    if config.lora is not None:
        check_adapters(model, config.lora, config.training.freeze_layers)
    fitted = Fitted(model, spec, schema, tokenizer)
    for name, split in corpus.splits.items():
        check_tokens(split, tokenizer, name)
    rehearse(config, fitted, corpus.train.texts)
    train = tokenize(corpus.train, tokenizer, spec.windows, scratch, "train", show_progress, corpus.schema)
    validation = tokenize(corpus.validation, tokenizer, spec.windows, scratch, "validation", show_progress)
    return Prepared(corpus, fitted, train, validation, tuple(notes))


def check_tokens(split: Split, tokenizer: Tokenizer, name: str) -> None:
    """Makes sure that at least one text of the split has a token.

    Raises:
        DataError: no text has a token, because the tokenizer's normalizer removes everything.
    """
    for batch in split.rows.select_columns(["text"]).iter(1000):
        if any(encoded.token_count for encoded in encode(batch["text"], tokenizer, max_length=1)):
            return
    raise DataError(f"data.text_transforms: leave no token of any text of the {name} split")


def tokenize(
    split: Split,
    tokenizer: Tokenizer,
    windows: Windows,
    scratch: Path,
    name: str,
    show_progress: bool = False,
    marked: Schema | None = None,
) -> TokenRows:
    """Tokenizes a split into a file in `scratch`. Texts without a token are left out: serving cannot answer them.

    Args:
        marked: the schema of rows to train on: those out of a head's scope get `OUT_OF_SCOPE` as its label, not NaN.
    """
    lengths: list[int] = []
    marks = {} if marked is None or SCOPE_COLUMN not in split.rows.column_names else marked.label_columns

    def tokens(texts: list[str], labels: Sequence[Any] = (), outside: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
        # Whole texts are encoded: the length of texts is worth knowing, and truncating them costs nothing.
        whole = [text.token_ids for text in encode(texts, tokenizer, max_length=2**31)]
        lengths.extend(len(ids) for ids in whole)
        ids = [list(ids[: windows.reach]) for ids in whole]
        bar.advance(len(texts))
        found: dict[str, Any] = {"input_ids": ids, "length": [windows.computed(len(row)) for row in ids]}
        if marks:
            found["labels"] = np.array(labels, np.float32)
            for row, heads in enumerate(outside):
                for head in heads:
                    found["labels"][row, marks[head]] = OUT_OF_SCOPE
        return found

    with progress(f"tokenizing {name}", len(split), shown=show_progress) as bar:
        rows = split.rows.map(
            tokens,
            batched=True,
            input_columns=["text", "labels", SCOPE_COLUMN] if marks else ["text"],
            remove_columns=[column for column in split.rows.column_names if column != "labels"],
            cache_file_name=str(scratch / f"{name}.arrow"),
            load_from_cache_file=False,
            new_fingerprint=name,  # without it the library would pickle the tokenizer to name the file
        )
    counts = np.array(lengths)
    if not counts.all():  # the tokenizer's normalizer may leave nothing of a text
        rows = rows.select(np.flatnonzero(counts))
    return TokenRows(rows, counts, windows)


def parameter_counts(model: Any) -> tuple[int, int]:
    """The number of parameters, and the number of trained ones."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


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
        tokens = prepared.train.computed / len(prepared.train.rows) * config.training.batch_size
        optimizer = chosen_optimizer(config.training.optim, config, "training.optim")
        say(describe_optimizer(optimizer, model))
        by_muon = sum(matrix.numel() for matrix in muon_matrices(model)) if optimizer == MUON else 0
        memory = estimate_memory(config.training, precision_of(config), model.config, total, trained, tokens, by_muon)
        parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in memory.items())
        say(f"memory per process, estimated: {sum(memory.values()) / 2**20:,.1f} MiB ({parts})")
        per_epoch, steps, evaluations = count_steps(config.training, len(prepared.train.rows), arguments.world_size)
        say(f"steps: {steps:,} ({per_epoch:,} per epoch), {evaluations:,} evaluations")


def _describe_lengths(train: TokenRows) -> str:
    values = np.percentile(train.lengths, QUANTILES, method="higher")
    names = [f"p{quantile}" if quantile < 100 else "max" for quantile in QUANTILES]
    quantiles = ", ".join(f"{name} {value:.0f}" for name, value in zip(names, values, strict=True))
    return f"tokens per text: {quantiles}; {describe_reading(train)}"


def describe_reading(train: TokenRows) -> str:
    """How much of the training texts is read, and what that costs."""
    windows, texts, tokens = train.windows, len(train.lengths), int(train.lengths.sum())
    long = f"{train.long / texts:.1%} of {texts} training texts are longer than max_length ({windows.length})"
    lines = [
        f"{long} and {'read in windows' if windows.most > 1 else 'truncated'}",
        f"{train.read / tokens:.1%} of all tokens are read",
    ]
    if windows.most > 1:
        lines[1] += f" ({train.truncated} texts are longer than {windows.most} windows, {windows.reach} tokens)"
        lines.append(f"{train.computed / train.read:.2f} tokens are computed per token read")
    return "; ".join(lines)


def estimate_memory(
    fit: FitConfig,
    precision: str,
    body: Any,
    parameters: int,
    trained: int,
    tokens_per_batch: float,
    by_muon: int = 0,
) -> dict[str, float]:
    """Bytes by purpose, without the overhead of libraries and fragmentation.

    Weights are float32. Each trained weight has a float32 gradient and AdamW's two moments; the `by_muon` weights that
    Muon trains have one moment. Activations are 17 values of n_embd per token and block (Korthikanti et al. 2022,
    arXiv:2205.05198, without the attention matrix, which the kernels do not keep), of 2 bytes in bf16 and fp16 and 4 in
    fp32. With gradient checkpointing they are one value per block, and 17 for one block at a time.
    """
    values = 17 * body.n_layer if not fit.gradient_checkpointing else body.n_layer + 17
    value_size = 4 if precision == "fp32" else 2
    return {
        "parameters": 4.0 * parameters,
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained - 4.0 * by_muon,
        "activations": tokens_per_batch * values * body.n_embd * value_size,
    }


def count_steps(fit: FitConfig, rows: int, processes: int) -> tuple[int, int, int]:
    """Steps per epoch, steps in total, and evaluations, as the Trainer counts them."""
    batches = math.ceil(math.ceil(rows / fit.batch_size) / processes)
    per_epoch = math.ceil(batches / fit.gradient_accumulation_steps)
    steps = fit.max_steps or math.ceil(fit.epochs * per_epoch)
    return per_epoch, steps, math.ceil(steps / (fit.eval_steps or per_epoch))
