"""The untrained model that a config describes: its spec, its tokenizer, its body from scratch or pretrained.

Weights in a pickle are never loaded, because a pickle can run code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2Model

from polyhead.body import Body
from polyhead.checkpoint import Spec
from polyhead.errors import PolyheadError, describe, one_line
from polyhead.schema import Schema
from polyhead_training.config import ModelConfig
from polyhead_training.config_keys import nearest
from polyhead_training.errors import ConfigError
from polyhead_training.model.hub import check_pretrained
from polyhead_training.model.modeling import build_model
from polyhead_training.model.packing import fuse_steps
from polyhead_training.model.tokenizer import END_OF_TEXT, pretrained_tokenizer, train_tokenizer, with_transforms

MIN_VOCAB_SIZE = 257  # all bytes and the end of text


def checkpoint_spec(config: ModelConfig, text_template: str | None = None) -> Spec:
    """The ``polyhead`` section that the checkpoint will have."""
    concat = config.architecture == "hidden_state_concat"
    try:
        return Spec(
            architecture=config.architecture,
            layer2concat=config.layer2concat if concat else None,
            head_class=config.head,
            head_args=config.head_args,
            max_length=config.max_length,
            text_template=text_template,
            long_texts=config.windows,
        )
    except ValidationError as error:
        raise ConfigError(f"model: {describe(error)}") from error


def model_tokenizer(config: ModelConfig, texts: Iterable[str], transforms: Sequence[str]) -> Tokenizer:
    """The pretrained model's tokenizer, or one trained on the texts. It applies `transforms`, in serving too."""
    if config.pretrained is not None:
        return with_transforms(pretrained_tokenizer(config.pretrained), transforms)
    vocab_size = config.gpt2.get("vocab_size", 8000)
    if not isinstance(vocab_size, int) or vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"model.gpt2.vocab_size: must be a whole number from {MIN_VOCAB_SIZE}, got {vocab_size!r}")
    return train_tokenizer(texts, vocab_size, transforms)


def untrained_model(config: ModelConfig, spec: Spec, schema: Schema, tokenizer: Tokenizer) -> Any:
    """The classifier with fresh heads.

    Raises:
        ConfigError: transformers or the head class refuse their arguments, or pretrained weights are missing.
    """
    try:
        if config.pretrained is None:
            return build_model(_fresh_config(config, tokenizer), spec, schema)
        body = _pretrained_body(config.pretrained, config.gpt2)
        model = build_model(body.config, spec, schema)
        fuse_steps(body)
        model.body_model = body
        return model
    except PolyheadError:
        raise
    except Exception as error:  # transformers and torch refuse their arguments with many kinds
        raise ConfigError(f"model: {one_line(error)}") from error


def _pretrained_body(name: str, dropouts: dict[str, Any]) -> GPT2Model:
    """A GPT-2 body in float32, from a plain GPT-2, a language model, or a classifier with ``body_model.*`` keys."""
    only_local = check_pretrained(name)
    # transformers gives missing tensors random weights, and only says so.
    loaded: Any = GPT2Model.from_pretrained(
        name, key_mapping={r"^body_model\.": ""}, output_loading_info=True, dtype=torch.float32,
        use_safetensors=True, local_files_only=only_local, **dropouts,
    )  # fmt: skip
    body: GPT2Model
    body, found = loaded
    if found["missing_keys"]:
        raise ConfigError(
            f"model.pretrained {name!r}: lacks weights of a GPT-2, {sorted(found['missing_keys'])[0]!r} first"
        )
    return body


def _fresh_config(config: ModelConfig, tokenizer: Tokenizer) -> GPT2Config:
    fields = config.gpt2
    known = set(GPT2Config().to_dict())
    if unknown := sorted(set(fields) - known):
        meant = f" (did you mean {found!r}?)" if (found := nearest(unknown[0], known)) else ""
        raise ConfigError(
            f"model.gpt2.{unknown[0]}: unknown field{meant}; allowed are the fields of transformers' GPT2Config"
        )
    end = tokenizer.token_to_id(END_OF_TEXT)
    defaults = {"n_positions": config.max_length, "bos_token_id": end, "eos_token_id": end}
    # A small corpus can have fewer merges than the config asks for.
    settings = defaults | fields | {"vocab_size": tokenizer.get_vocab_size()}
    try:
        Body.model_validate(GPT2Config().to_dict() | settings)
    except ValidationError as error:
        raise ConfigError(f"model.gpt2: {describe(error)}") from error
    return GPT2Config(**settings)
