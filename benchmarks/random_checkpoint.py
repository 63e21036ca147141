"""The serving benchmark's checkpoint: random weights, for us and, with the same weights, for transformers.

Speed depends on the shape and the texts' tokens, not on what was learned. The architecture is ``base`` with a linear
head, which transformers has too (``GPT2ForSequenceClassification``), so that product and peers compute the same logits.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.workload import TOKENIZER_VOCAB_SIZE, random_checkpoint
from polyhead.schema import Head, Schema
from polyhead_training.model.tokenizer import END_OF_TEXT, train_tokenizer


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The options that say how large the model is; their defaults are GPT-2 small with 64 labels."""
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257, help="rows of the embedding")
    parser.add_argument("--labels", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=1024)


def write_checkpoints(shape: argparse.Namespace, texts: Sequence[str], ours: Path, theirs: Path) -> Tokenizer:
    """Writes the checkpoint folder `ours` and transformers' folder `theirs`; both have the tokenizer of `texts`."""
    tokenizer = train_tokenizer(texts, min(TOKENIZER_VOCAB_SIZE, shape.vocabulary))
    labels = tuple(f"label_{number}" for number in range(shape.labels))
    model = random_checkpoint(
        ours, "base", shape.layers, shape.channels, tokenizer, texts,
        schema=Schema([Head(name="label", kind="single_label", labels=labels)]),
        vocabulary=shape.vocabulary, max_length=shape.max_length,
    )  # fmt: skip
    config = copy.deepcopy(model.config)
    config.pad_token_id = config.eos_token_id
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in config.id2label.items()}
    peer = GPT2ForSequenceClassification(config)
    peer.transformer.load_state_dict(model.body_model.state_dict())
    peer.score.load_state_dict(model.head.state_dict())
    peer.save_pretrained(theirs)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=END_OF_TEXT, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT,
        model_max_length=shape.max_length,
    ).save_pretrained(theirs)  # fmt: skip
    # The name that transformers before 5, which infinity_emb needs, knows as well.
    described = theirs / "tokenizer_config.json"
    renamed = json.loads(described.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    described.write_text(json.dumps(renamed), encoding="utf-8")
    return tokenizer
