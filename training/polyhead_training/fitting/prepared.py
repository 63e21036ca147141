"""What a fit and its dry run start from: rows, tokenizer and the untrained model that the config describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import set_seed

from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus
from polyhead_training.data.rows import open_files
from polyhead_training.evaluation.metrics import flat_scores
from polyhead_training.fitting.arguments import check_best_metric
from polyhead_training.fitting.tokens import TokenRows, check_tokens, tokenize
from polyhead_training.fitting.written import Fitted, rehearse
from polyhead_training.model.body import checkpoint_spec, model_tokenizer, untrained_model
from polyhead_training.model.layers import freeze
from polyhead_training.model.lora import check_adapters
from polyhead_training.model.losses import loss_terms


@dataclass(frozen=True)
class Prepared:
    """A corpus, tokenized, and the untrained model with what describes it."""

    corpus: Corpus
    fitted: Fitted
    train: TokenRows
    validation: TokenRows

    @property
    def notes(self) -> list[str]:
        """What the user should know of the tokens."""
        return [
            f"note: {rows.left_out} of {len(rows.lengths)} {name} texts are left out, text_transforms leave no token"
            for name, rows in (("train", self.train), ("validation", self.validation))
            if rows.left_out
        ]


def prepare(
    config: TrainingConfig,
    corpus: Corpus,
    scratch: Path,
    say: Callable[[str], None],
    tokenizer: Tokenizer | None = None,
) -> Prepared:
    """Builds and rehearses the model and tokenizes the rows.

    Args:
        tokenizer: of a run that goes on; if not given, as the config says.

    Raises:
        ConfigError, DataError: what would be refused after training is refused here.
    """
    if config.warm_start is not None and config.warm_start.texts:
        open_files(config.warm_start.texts)  # a name that matches nothing is said at once
    check_best_metric(config.training.best_metric, _metric_names(corpus))
    if tokenizer is None:
        say("preparing the tokenizer")
        tokenizer = model_tokenizer(config.model, corpus.train.texts, config.data.text_transforms)
    set_seed(config.seed)
    spec = checkpoint_spec(config.model)
    model = untrained_model(config.model, spec, corpus.schema, tokenizer)
    model.terms = loss_terms(corpus.schema, config.heads, _labels_to_balance(config, corpus))
    freeze(model, config.training.freeze_layers)
    if config.lora is not None:
        check_adapters(model, config.lora, config.training.freeze_layers)
    fitted = Fitted(model, spec, corpus.schema, tokenizer)
    for name, split in corpus.splits.items():
        check_tokens(split, tokenizer, name)
    rehearse(config, fitted, corpus.train.texts)
    train = tokenize(corpus.train, tokenizer, spec.max_length, scratch, "train")
    validation = tokenize(corpus.validation, tokenizer, spec.max_length, scratch, "validation")
    return Prepared(corpus, fitted, train, validation)


def parameter_counts(model: Any) -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


def _labels_to_balance(config: TrainingConfig, corpus: Corpus) -> NDArray[np.float32] | None:
    """The training labels, if a head's weights are counted from them."""
    is_counted = any("balanced" in (head.class_weights, head.positive_weights) for head in config.heads)
    return corpus.train.labels if is_counted else None


def _metric_names(corpus: Corpus) -> Iterable[str]:
    labels = corpus.validation.labels
    return flat_scores(np.zeros((len(labels), corpus.schema.width), dtype=np.float32), labels, corpus.schema)
