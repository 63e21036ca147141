"""Tiny random checkpoints of every shape, for tests to load, serve and compare; each is made in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GPT2Config

from polyhead.checkpoint import Spec, read_checkpoint, renew_golden, write_checkpoint
from polyhead.distribution import Distribution
from polyhead.golden import GoldenRow
from polyhead.predictor import Predictor
from polyhead.schema import Architecture, Head, Schema
from polyhead.windows import LongTexts
from polyhead_training.evaluation.answer_distribution import answer_distribution
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.fitting.checkpoint_writing import golden_rows
from polyhead_training.model.modeling import build_model
from polyhead_training.model.tokenizer import train_tokenizer

MAX_LENGTH = 48

TEXTS = [
    "Parliament passed the budget after a night of debate.",
    "The striker scored twice in the second half and the crowd went home happy.",
    "A new telescope sees the light of the first galaxies; its mirror has eighteen parts.",
    "Rain.",
    "Prices rose, wages did not, and the minister said that both would change next year if the harvest is good.",
    "Ein kurzer Satz mit Umlauten: Größe, Übermut, schön.",
    "naïve café — 東京 🙂",
    "Literal <|endoftext|> in the middle of a text",
    "def fit(model, rows):\n    return model.train(rows)\n",
    "word " * 200,
]

SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("news", "sport", "science")),
        Head(name="mood", kind="multi_label", labels=("happy", "sad", "angry", "calm")),
        Head(name="stars", kind="regression"),
    ]
)


@cache
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 tokens."""
    return train_tokenizer(TEXTS, 400)


def tiny_config(**fields: Any) -> GPT2Config:
    """The config of a GPT-2 with three layers and 32 channels; dropout is on, as in training."""
    defaults = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": MAX_LENGTH}
    return GPT2Config(
        **(defaults | fields | {"vocab_size": tiny_tokenizer().get_vocab_size(), "bos_token_id": 0, "eos_token_id": 0})
    )


def tiny_spec(
    architecture: Architecture = "base",
    head_class: str | None = None,
    text_template: str | None = None,
    long_texts: LongTexts | None = None,
    **head_args: Any,
) -> Spec:
    """The spec of an architecture, with its default head."""
    concat = architecture == "hidden_state_concat"
    return Spec(
        architecture=architecture,
        layer2concat=2 if concat else None,
        head_class=head_class or ("ConcatHeadSimple" if concat else "Linear"),
        head_args=head_args,
        max_length=MAX_LENGTH,
        text_template=text_template,
        long_texts=long_texts,
    )


def tiny_model(spec: Spec, schema: Schema = SCHEMA, seed: int = 0, **config_fields: Any) -> Any:
    """A model in eval mode, with random weights that are large enough for texts to get different answers."""
    torch.manual_seed(seed)
    model = build_model(tiny_config(**config_fields), spec, schema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def change_golden(path: Path, change: Callable[[list[GoldenRow]], list[GoldenRow]]) -> None:
    """Replaces the golden rows of a checkpoint; their answers are made again, so only the engine can refuse them."""
    checkpoint = read_checkpoint(path)
    renew_golden(checkpoint, change(checkpoint.golden()))


OVERFLOWING = "Rain ~ and more"  # no golden text has the tilde


def overflow(path: Path, value: float = 3e38) -> None:
    """Makes the weights of one token so large that the model's numbers overflow in texts with a tilde."""
    tensors = load_file(path / "model.safetensors")
    tensors["body_model.wte.weight"][tiny_tokenizer().token_to_id("~")] = value
    save_file(tensors, path / "model.safetensors")


def write_tiny_checkpoint(
    path: Path,
    architecture: Architecture = "base",
    schema: Schema = SCHEMA,
    seed: int = 0,
    head_class: str | None = None,
    head_args: dict[str, Any] | None = None,
    text_template: str | None = None,
    template_fields: list[str] | None = None,
    long_texts: LongTexts | None = None,
    **config_fields: Any,
) -> Any:
    """Writes the checkpoint of a random model; returns the transformers model."""
    spec = tiny_spec(architecture, head_class, text_template, long_texts, **(head_args or {}))
    model = tiny_model(spec, schema, seed, **config_fields)
    write_model(path, model, spec, schema, tiny_tokenizer(), template_fields)
    return model


def write_model(
    path: Path, model: Any, spec: Spec, schema: Schema, tokenizer: Tokenizer, template_fields: list[str] | None = None
) -> None:
    """Writes a checkpoint with golden rows from transformers.

    Golden rows are TEXTS or, if they are given, `template_fields`: the fields of the template as JSON.
    """
    texts = TEXTS
    if template_fields is not None and spec.template is not None:
        texts = [spec.template.render(json.loads(fields)) for fields in template_fields]
    write_checkpoint(
        path,
        config=model.config.to_dict(),
        spec=spec,
        schema=schema,
        tensors=model.state_dict(),
        tokenizer_json=tokenizer.to_str(),
        golden=golden_rows(
            texts,
            model,
            tokenizer,
            schema,
            MAX_LENGTH,
            rows=len(texts),
            seed=0,
            template=spec.template,
            template_fields=template_fields,
            long_texts=spec.long_texts,
        ),
        metrics={},
    )


def write_distribution(path: Path, texts: list[str]) -> Distribution:
    """Adds ``distribution.json`` to a checkpoint, as if these texts were its validation rows."""
    predictor = Predictor.load(path, precision="fp32")
    encoded = predictor.encode(texts)
    evaluation = Evaluation(
        schema=predictor.schema,
        max_length=predictor.max_length,
        texts=texts,
        labels=np.full((len(texts), predictor.schema.label_width), np.nan, np.float32),
        scores=predictor.score(encoded),
        token_counts=np.array([text.token_count for text in encoded], np.int32),
        truncated=np.array([text.truncated for text in encoded]),
        metrics={},
    )
    found = answer_distribution(evaluation)
    found.write(path)
    return found
