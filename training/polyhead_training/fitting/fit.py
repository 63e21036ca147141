"""Fitting: from a config to a checkpoint folder, step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, TrainerCallback, TrainingArguments

from polyhead.checkpoint import check_output
from polyhead.files import write_file
from polyhead.schema import Schema
from polyhead_rows.progress import progress
from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import read_corpus
from polyhead_training.data.description import describe_corpus
from polyhead_training.errors import DivergenceError
from polyhead_training.evaluation.baselines import fit_linear
from polyhead_training.evaluation.calibration import calibrate, describe_calibration
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import flat_scores
from polyhead_training.evaluation.mixing import describe_mix, mix
from polyhead_training.fitting.arguments import describe_precision, precision_of, trackers, training_arguments
from polyhead_training.fitting.checkpoint_writing import Fitted, write_evaluated
from polyhead_training.fitting.optimizers import MUON, chosen_optimizer, describe_optimizer
from polyhead_training.fitting.preparation import Prepared, describe_reading, parameter_counts, prepare
from polyhead_training.fitting.trainer import ClassifierTrainer, ShowProgress, StopOnSignal
from polyhead_training.fitting.warm_start import warm_start
from polyhead_training.fitting.working_folder import WorkingFolder
from polyhead_training.model.layers import add_adapters, merge_adapters
from polyhead_training.model.losses import classification_loss
from polyhead_training.model.packing import collate


@dataclass(frozen=True)
class TrainingResult:
    """What a run reached.

    Attributes:
        metrics: the content of ``metrics.json``.
        evaluation: what the report shows: of the test rows or, without them, the validation rows.
        history: the Trainer's ``log_history``.
        engine_distance: the engine's largest distance from transformers.
    """

    metrics: dict[str, Any]
    schema: Schema
    evaluation: Evaluation
    history: list[dict[str, Any]]
    engine_distance: float


def fit(
    config: TrainingConfig, say: Callable[[str], None] = print, *, resume: bool = False, restart: bool = False
) -> TrainingResult | None:
    """Trains and writes the checkpoint to ``config.output``.

    Args:
        say: prints a line per event, only in the first process.
        resume: continues the unfinished run of this output.
        restart: deletes it.

    Returns:
        None in processes other than the first.

    Raises:
        CheckpointError, ConfigError, DataError, SchemaError: before anything is trained; DivergenceError: training
            diverged. ``config.output`` then stays as it was.
        Interrupted: a signal came; `resume` continues.
        StorageError: a disk is full; what is saved is kept.
    """
    work = WorkingFolder(config.output)
    check_output(config.output)
    tracked = trackers(config.training.report_to, work.logs)
    arguments = training_arguments(config, work.checkpoints)
    is_first = arguments.process_index == 0
    say = say if is_first else lambda _: None
    if torch.cuda.device_count() > 1 and arguments.world_size == 1:
        say(f"uses one of {torch.cuda.device_count()} GPUs; torchrun --nproc-per-node gpu uses all")
    lock = work.lock() if is_first else nullcontext()
    with work.explained_if_full(), lock, tempfile.TemporaryDirectory(prefix="polyhead-train-") as scratch:
        if is_first:
            work.check(resume=resume, restart=restart)
        say("reading data")
        corpus = read_corpus(config.data, config.heads, Path(scratch), config.seed, show_progress=is_first)
        for line in describe_corpus(corpus):
            say(f"  {line}")
        with arguments.main_process_first():  # the others take its tokenizer
            if is_first:
                work.begin(config, corpus, processes=arguments.world_size, resume=resume)
            kept = Tokenizer.from_file(str(work.tokenizer)) if work.tokenizer.exists() else None
            prepared = prepare(config, corpus, Path(scratch), say, kept, show_progress=is_first)
            for note in prepared.notes:
                say(f"  {note}")
            if is_first:
                write_file(work.tokenizer, prepared.fitted.tokenizer.to_str())
        try:
            result = _train(config, prepared, arguments, tracked, work, Path(scratch), say)
        except DivergenceError as error:
            lost = " with its finished warm start" if work.finished_warm_start.exists() else ""
            if is_first:
                work.clear()  # there is nothing to continue from
            raise DivergenceError(f"{error}; the unfinished run is removed{lost}") from None
        if is_first:
            work.clear()
    if arguments.world_size > 1:
        torch.distributed.destroy_process_group()
    return result


def _train(
    config: TrainingConfig,
    prepared: Prepared,
    arguments: TrainingArguments,
    tracked: list[TrainerCallback],
    work: WorkingFolder,
    scratch: Path,
    say: Callable[[str], None],
) -> TrainingResult | None:
    corpus, fitted, train = prepared.corpus, prepared.fitted, prepared.train
    model, schema = fitted.model, fitted.schema
    is_first = arguments.process_index == 0
    learnt: dict[str, Any] = {}
    if config.warm_start is not None:
        learnt["warm_start"] = warm_start(config, fitted, corpus, work, scratch, say)
    adapted = add_adapters(model, config.lora, config.training.freeze_layers) if config.lora is not None else None
    total, trained = parameter_counts(model)
    share = "" if trained == total else f" ({trained / 1e6:.2f} M of them trained)"
    say(f"training {total / 1e6:.1f} M parameters{share} in {describe_precision(config)}")
    optimizer = chosen_optimizer(config.training.optim, config, "training.optim")
    say(describe_optimizer(optimizer, model))
    say(describe_reading(train))
    packed = partial(collate, windows=fitted.spec.windows)
    early = config.training.early_stopping
    stopping = [] if early is None else [EarlyStoppingCallback(early.patience, early.min_delta)]
    stop = StopOnSignal(say, arguments)
    shown = ShowProgress("training", say, train.computed / len(train.rows), schema, config.training.best_metric)
    trainer = ClassifierTrainer(
        model=model,
        args=arguments,
        muon=optimizer == MUON,
        layer_lr_decay=config.training.layer_lr_decay,
        data_collator=packed,
        train_dataset=train.rows,
        eval_dataset=prepared.validation.rows,
        compute_metrics=lambda prediction: _flat_metrics(prediction, model, schema, config),
        callbacks=[shown, *tracked, *stopping, stop],
    )
    shown.recent_loss = trainer.recent_loss
    if not work.load_trained(trainer):
        with closing(shown), stop.listening():
            trainer.train(resume_from_checkpoint=work.last_checkpoint(work.checkpoints))
            if not stop.stopped and is_first:
                work.keep_trained(trainer)
    if trainer.state.global_step < trainer.state.max_steps:
        say(f"stopped early: {config.training.best_metric} no longer improves")
    if not is_first:
        return None
    # Removes the autocast around the model's forward: calibrated and golden scores are float32, as served.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    logits, labels = _answer(model, prepared.validation.rows, arguments, packed)
    linear, ngrams = None, None
    if config.model.ngrams:
        say("fitting the n-grams")
        linear = fit_linear(corpus.train, schema, config.seed, show_progress=True)
        added = linear.logits(prepared.validation_texts)
        mixed = mix(logits, added, labels, schema, linear)
        for line in describe_mix(mixed):
            say(f"  {line}")
        logits, schema, ngrams = mixed.logits(logits, added), mixed.schema, mixed.ngrams
        learnt["ngrams"] = mixed.summary
    say("calibrating")
    rejections = {head.name: head.reject for head in config.heads if head.reject is not None}
    calibrated, calibration = calibrate(logits, labels, schema, config.calibration, rejections)
    for line in describe_calibration(calibration):
        say(f"  {line}")
    if adapted is not None:
        merge_adapters(model, adapted)
    metrics, evaluation, distance = write_evaluated(
        config,
        Fitted(model, fitted.spec, calibrated, fitted.tokenizer, ngrams),
        corpus,
        training={
            "seconds": round(trainer.seconds + learnt.get("warm_start", {}).get("seconds", 0.0), 1),
            "rows": len(train.rows),
            "truncated_rows": train.truncated,
            "text_tokens": int(train.lengths.sum()),
            "read_tokens": train.read,
            "computed_tokens": train.computed,
            "epochs": trainer.state.epoch,
            "steps": trainer.state.global_step,
            "parameters": total,
            "trained_parameters": trained,
            "precision": precision_of(config),
            "best_step": trainer.state.best_global_step,
            f"best_{config.training.best_metric}": trainer.state.best_metric,
        }
        | learnt,
        history=trainer.state.log_history,
        calibration=calibration,
        linear=linear,
        say=say,
    )
    return TrainingResult(metrics, calibrated, evaluation, trainer.state.log_history, distance)


@torch.inference_mode()
def _answer(
    model: Any, rows: datasets.Dataset, arguments: TrainingArguments, packed: Callable[[Any], dict[str, torch.Tensor]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits ``(n, width)`` and labels of all rows, in their order."""
    model.eval()
    logits, labels = [], []
    with progress("answering validation texts", len(rows), unit="texts") as bar:
        for batch in DataLoader(rows, arguments.per_device_eval_batch_size, collate_fn=packed):
            labels.append(batch.pop("labels"))
            logits.append(model(**{name: part.to(model.device) for name, part in batch.items()}).logits.cpu())
            bar.advance(len(labels[-1]))
    # `collate` sorts the rows of a batch by length.
    lengths, size = np.array([len(ids) for ids in rows["input_ids"]]), arguments.per_device_eval_batch_size
    starts = range(0, len(rows), size)
    order = np.concatenate([at + np.argsort(-lengths[at : at + size], kind="stable") for at in starts])
    place = np.argsort(order)
    return torch.cat(logits).numpy()[place], torch.cat(labels).numpy()[place]


def _flat_metrics(prediction: EvalPrediction, model: Any, schema: Schema, config: TrainingConfig) -> dict[str, float]:
    """``loss``, of all rows at once, and ``head/metric``."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if not np.isfinite(logits).all():
        rate = config.training.learning_rate
        raise DivergenceError(
            f"training.learning_rate: training diverged, logits are no longer finite; lower it (is {rate:g})"
        )
    loss = classification_loss(torch.from_numpy(logits), torch.from_numpy(labels), model.terms)
    return {"loss": float(loss)} | flat_scores(logits, labels, schema)
