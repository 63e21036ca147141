"""Warm start: the body is trained as a causal language model on the texts before the heads are trained."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, default_data_collator
from transformers.trainer_callback import PrinterCallback

from polyhead.files import replaced_folder
from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus, read_texts
from polyhead_training.errors import ConfigError, DivergenceError
from polyhead_training.fitting.arguments import language_model_arguments
from polyhead_training.fitting.checkpoint_writing import Fitted
from polyhead_training.fitting.optimizers import MUON, chosen_optimizer, describe_optimizer
from polyhead_training.fitting.trainer import LossAtCheckpoints, ShowProgress, StopOnSignal, TotalsTrainer
from polyhead_training.fitting.working_folder import WorkingFolder
from polyhead_training.model.packing import fuse_steps
from polyhead_training.model.tokenizer import END_OF_TEXT


def warm_start(
    config: TrainingConfig,
    fitted: Fitted,
    corpus: Corpus,
    work: WorkingFolder,
    scratch: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Trains the body and saves it in the working folder. If a body is there already, that one is used.

    Returns:
        What ``metrics.json`` says about it: seconds, tokens, steps, and loss and perplexity on the validation texts.

    Raises:
        ConfigError: too few texts.
        DivergenceError: the rate is too high.
        Interrupted: it was stopped and can continue.
    """
    assert config.warm_start is not None
    model, length = fitted.model, fitted.spec.max_length
    finished = work.finished_warm_start
    if not finished.exists():
        lm = _language_model(model.body_model)
        arguments = language_model_arguments(config, work.warm_start)
        is_first = arguments.process_index == 0
        texts = [corpus.train.texts]
        if config.warm_start.texts:
            texts.append(read_texts(config.warm_start.texts, config.data, scratch, is_first).texts)
        train = _to_blocks(texts, fitted.tokenizer, length, scratch, "training")
        validation = _to_blocks([corpus.validation.texts], fitted.tokenizer, length, scratch, "validation")
        stop = StopOnSignal(say, arguments)
        shown = ShowProgress("warm start", say, tokens_per_row=length)
        optimizer = chosen_optimizer(config.warm_start.optim, config, "warm_start.optim")
        trainer = TotalsTrainer(
            model=lm,
            muon=optimizer == MUON,
            args=arguments,
            data_collator=default_data_collator,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=[LossAtCheckpoints(), shown, stop],
        )
        trainer.remove_callback(PrinterCallback)
        shown.recent_loss = trainer.recent_loss
        say(f"warm start: {len(train)} blocks of {length} tokens for {trainer.args.num_train_epochs:g} epochs")
        say(f"warm start: {describe_optimizer(optimizer, lm)}")
        with closing(shown), stop.listening():
            trainer.train(resume_from_checkpoint=work.last_checkpoint(work.warm_start))
        loss = float(trainer.evaluate()["eval_loss"])
        if not math.isfinite(loss):
            rate = f"{arguments.learning_rate:g}"
            raise DivergenceError(f"warm_start.learning_rate: the language model diverged; lower it (is {rate})")
        summary = {
            "seconds": round(trainer.seconds, 1),
            "tokens": len(train) * length,
            "steps": trainer.state.global_step,
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
        }
        if trainer.is_world_process_zero():
            _keep(lm, summary, finished)
        trainer.accelerator.wait_for_everyone()
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    model.body_model.load_state_dict(load_file(finished / "body.safetensors"))
    say(f"warm start: validation loss {summary['loss']:.3f}, perplexity {summary['perplexity']:.1f}")
    return dict(summary)


def _language_model(body: Any) -> GPT2LMHeadModel:
    """A language model with a copy of the body's weights. The classifier may run its attention in another way."""
    config = copy.deepcopy(body.config)
    config._attn_implementation = "sdpa"
    lm = GPT2LMHeadModel(config)
    lm.transformer.load_state_dict(body.state_dict())
    fuse_steps(lm.transformer)
    lm.tie_weights()
    return lm


def _to_blocks(
    sources: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int, scratch: Path, name: str
) -> datasets.Dataset:
    """All texts, each followed by ``<|endoftext|>``, cut into blocks of `length` tokens. The rest is dropped."""
    end = tokenizer.token_to_id(END_OF_TEXT)

    def blocks() -> Iterable[dict[str, Any]]:
        held: list[int] = []
        remaining = chain.from_iterable(sources)
        while batch := list(islice(remaining, 1000)):
            for encoded in tokenizer.encode_batch(batch):
                if encoded.ids:  # the tokenizer's normalizer may leave none
                    held += encoded.ids if end is None else [*encoded.ids, end]
            while len(held) >= length:
                block, held = held[:length], held[length:]
                yield {"input_ids": block, "labels": block}

    if next(iter(blocks()), None) is None:
        raise ConfigError(f"warm_start: all {name} texts together are shorter than max_length ({length}) tokens")
    return datasets.Dataset.from_generator(blocks, cache_dir=str(scratch / "blocks"), fingerprint=f"blocks-{name}")


def _keep(lm: GPT2LMHeadModel, summary: dict[str, Any], finished: Path) -> None:
    body = {
        name: tensor.detach().cpu().to(torch.float32).contiguous()
        for name, tensor in lm.transformer.state_dict().items()
    }
    with replaced_folder(finished) as fresh:
        save_file(body, fresh / "body.safetensors")
        (fresh / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for checkpoint in finished.parent.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
