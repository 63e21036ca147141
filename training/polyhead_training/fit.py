"""Fitting: transformers' Trainer over a corpus; from a config to a checkpoint folder."""

from __future__ import annotations

import copy
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import EvalPrediction, GPT2Config, GPT2Model, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from polyhead.checkpoint import Body, Spec, check_output, write_checkpoint
from polyhead.encode import EncodedText, encode
from polyhead.errors import PolyheadError, describe, one_line
from polyhead.export import check_golden
from polyhead.predictor import Predictor
from polyhead.schema import Schema
from polyhead_training.config import FitConfig, TrainingConfig
from polyhead_training.data import Split, read_corpus
from polyhead_training.description import describe_corpus
from polyhead_training.errors import ConfigError
from polyhead_training.golden import golden_rows
from polyhead_training.metrics import score_heads
from polyhead_training.modeling import build_model
from polyhead_training.progress import ProgressLines
from polyhead_training.report import training_curves
from polyhead_training.tokenizer import END_OF_TEXT, pretrained_tokenizer, train_tokenizer

MIN_VOCAB_SIZE = 257  # all bytes and the end of text


@dataclass(frozen=True)
class TrainingResult:
    """What a run reached: the scores of ``metrics.json`` and the largest distance of the engine from transformers."""

    metrics: dict[str, Any]
    schema: Schema
    engine_distance: float


def fit(config: TrainingConfig, say: Callable[[str], None] = print) -> TrainingResult:
    """Trains and writes the checkpoint to ``config.output``.

    Args:
        say: is told what goes on, a line at a time.

    Raises:
        CheckpointError, ConfigError, DataError, SchemaError: before anything is trained; and ConfigError when training
            diverges. What stood at ``config.output`` then stays as it was.
    """
    with tempfile.TemporaryDirectory(prefix="polyhead-data-") as scratch:
        return _fit(config, say, Path(scratch))


def _fit(config: TrainingConfig, say: Callable[[str], None], data: Path) -> TrainingResult:
    set_seed(config.seed)
    check_output(config.output)
    say("reading data")
    corpus = read_corpus(config.data, config.heads, data, config.seed)
    for line in describe_corpus(corpus):
        say(f"  {line}")
    say("preparing the tokenizer")
    tokenizer = _tokenizer(config, corpus.train.texts)
    spec = _spec(config)
    model = _model(config, spec, corpus.schema, tokenizer)
    _rehearse(config, model, spec, corpus.schema, tokenizer, corpus.train.texts[:1])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"training {parameters / 1e6:.1f} M parameters for {config.training.epochs:g} epochs")
    encoded = encode(corpus.train.texts, tokenizer, spec.max_length)
    train = _to_columns(encoded, corpus.train)
    validation = _to_columns(encode(corpus.validation.texts, tokenizer, spec.max_length), corpus.validation)
    truncated = sum(text.truncated for text in encoded)
    say(f"{truncated} of {len(corpus.train)} training texts are longer than {spec.max_length} tokens and are truncated")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polyhead-trainer-") as scratch:
        trainer = Trainer(
            model,
            args=_arguments(config.training, config.seed, Path(scratch)),
            data_collator=collate,
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=lambda prediction: _flat_metrics(prediction, corpus.schema, config.training.learning_rate),
            callbacks=[ProgressLines(corpus.schema, say)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = time.monotonic() - started
        metrics: dict[str, Any] = {"validation": _evaluate(trainer, validation, corpus.schema)}
        if corpus.test is not None:
            test = _to_columns(encode(corpus.test.texts, tokenizer, spec.max_length), corpus.test)
            metrics["test"] = _evaluate(trainer, test, corpus.schema)
    metrics["training"] = {
        "seconds": round(seconds, 1),
        "rows": len(corpus.train),
        "truncated_rows": truncated,
        "epochs": config.training.epochs,
        "parameters": parameters,
    }
    say("computing golden answers")
    distance = _write(
        config.output,
        config=config,
        model=model,
        spec=spec,
        schema=corpus.schema,
        tokenizer=tokenizer,
        texts=(corpus.test or corpus.validation).texts,
        metrics=metrics,
        report={"training.png": training_curves(trainer.state.log_history, corpus.schema)},
    )
    return TrainingResult(metrics, corpus.schema, distance)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right to its longest: ``input_ids`` and ``attention_mask`` (n, length), ``labels``."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for position, row in enumerate(rows):
        ids[position, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[position, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


def _tokenizer(config: TrainingConfig, texts: Sequence[str]) -> Tokenizer:
    if config.model.pretrained is not None:
        return pretrained_tokenizer(config.model.pretrained)
    vocab_size = config.model.gpt2.get("vocab_size", 8000)
    if not isinstance(vocab_size, int) or vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"model.gpt2.vocab_size: must be a whole number from {MIN_VOCAB_SIZE}, got {vocab_size!r}")
    return train_tokenizer(texts, vocab_size)


def _spec(config: TrainingConfig) -> Spec:
    concat = config.model.architecture == "hidden_state_concat"
    try:
        return Spec(
            architecture=config.model.architecture,
            layer2concat=config.model.layer2concat if concat else None,
            head_class=config.model.head,
            head_args=config.model.head_args,
            max_length=config.model.max_length,
        )
    except ValidationError as error:
        raise ConfigError(f"model: {describe(error)}") from error


def _model(config: TrainingConfig, spec: Spec, schema: Schema, tokenizer: Tokenizer) -> Any:
    try:
        if config.model.pretrained is None:
            return build_model(_fresh_config(config, tokenizer), spec, schema)
        body = _pretrained_body(config.model.pretrained)
        model = build_model(body.config, spec, schema)
        model.body_model = body
        return model
    except PolyheadError:
        raise
    except Exception as error:  # transformers and torch refuse their arguments with many kinds
        raise ConfigError(f"model: {one_line(error)}") from error


def _pretrained_body(name: str) -> GPT2Model:
    """A GPT-2 body in float32: of a plain GPT-2, a language model, or a classifier saved with ``body_model.*`` keys."""
    # transformers fills what it does not find with random weights, and only says so.
    body, found = GPT2Model.from_pretrained(
        name, key_mapping={r"^body_model\.": ""}, output_loading_info=True, dtype=torch.float32
    )
    if found["missing_keys"]:
        raise ConfigError(
            f"model.pretrained {name!r}: lacks weights of a GPT-2, {sorted(found['missing_keys'])[0]!r} first"
        )
    return body


def _rehearse(
    config: TrainingConfig, model: Any, spec: Spec, schema: Schema, tokenizer: Tokenizer, texts: Sequence[str]
) -> None:
    """Writes and serves the untrained model once: what would be refused after training is refused before it."""
    with tempfile.TemporaryDirectory(prefix="polyhead-rehearsal-") as scratch:
        try:
            _write(
                Path(scratch) / "checkpoint",
                config=config,
                model=copy.deepcopy(model),
                spec=spec,
                schema=schema,
                tokenizer=tokenizer,
                texts=texts,
                metrics={},
            )
        except Exception as error:  # a head class or torch may refuse with anything
            # Without the places of scratch files, which mean nothing to the user.
            raise ConfigError("model: " + re.sub(rf"{re.escape(scratch)}\S*: ", "", one_line(error))) from error


def _write(
    output: Path,
    *,
    config: TrainingConfig,
    model: Any,
    spec: Spec,
    schema: Schema,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    metrics: dict[str, Any],
    report: dict[str, bytes] | None = None,
) -> float:
    """Writes a checkpoint that the engine has proved; returns the engine's distance from transformers."""
    golden = golden_rows(texts, model, tokenizer, schema, spec.max_length, config.golden_rows, config.seed)
    distances: list[float] = []
    write_checkpoint(
        output,
        config=_checkpoint_config(model, schema),
        spec=spec,
        schema=schema,
        tensors=model.state_dict(),
        tokenizer_json=tokenizer.to_str(),
        golden=golden,
        metrics=metrics,
        report=report,
        prove=lambda fresh: distances.append(check_golden(Predictor.load(fresh))),
    )
    return distances[0]


def _fresh_config(config: TrainingConfig, tokenizer: Tokenizer) -> GPT2Config:
    fields = config.model.gpt2
    known = set(GPT2Config().to_dict())
    if unknown := sorted(set(fields) - known):
        raise ConfigError(f"model.gpt2.{unknown[0]}: unknown field; allowed are the fields of transformers' GPT2Config")
    end = tokenizer.token_to_id(END_OF_TEXT)
    defaults = {"n_positions": config.model.max_length, "bos_token_id": end, "eos_token_id": end}
    # A small corpus can end with fewer merges than were asked for.
    settings = defaults | fields | {"vocab_size": tokenizer.get_vocab_size()}
    try:
        Body.model_validate(GPT2Config().to_dict() | settings)
    except ValidationError as error:
        raise ConfigError(f"model.gpt2: {describe(error)}") from error
    return GPT2Config(**settings)


def _to_columns(encoded: Sequence[EncodedText], split: Split) -> datasets.Dataset:
    ids = [text.token_ids for text in encoded]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": split.labels, "length": [len(row) for row in ids]})


def _arguments(config: FitConfig, seed: int, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        seed=seed,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        train_sampling_strategy=config.train_sampling_strategy,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _evaluate(trainer: Trainer, rows: datasets.Dataset, schema: Schema) -> dict[str, dict[str, float]]:
    prediction = trainer.predict(rows)
    return score_heads(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), schema)


def _flat_metrics(prediction: EvalPrediction, schema: Schema, learning_rate: float) -> dict[str, float]:
    if not np.isfinite(np.asarray(prediction.predictions)).all():
        raise ConfigError(
            f"training.learning_rate: training diverged, logits are no longer finite; lower it (is {learning_rate:g})"
        )
    by_head = score_heads(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), schema)
    return {f"{head}/{name}": value for head, scores in by_head.items() for name, value in scores.items()}


def _checkpoint_config(model: Any, schema: Schema) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_dict()
    columns = schema.column_names()
    return config | {
        "architectures": [type(model).__name__],
        "id2label": {str(i): column for i, column in enumerate(columns)},
        "label2id": {column: i for i, column in enumerate(columns)},
    }
