"""What the product and its peers compute: GPT-2 classifiers with random weights, and texts for them.

Speed depends on the model's shape and the texts' tokens, and not on what the model has learned.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model, PreTrainedTokenizerFast, set_seed

from polyhead.checkpoint import Checkpoint, Spec, write_checkpoint
from polyhead.encode import encode
from polyhead.schema import Architecture, Head, HeadKind, Schema
from polyhead_training.fitting.checkpoint_writing import golden_rows
from polyhead_training.model.modeling import build_model
from polyhead_training.model.tokenizer import END_OF_TEXT, train_tokenizer

# 64 labels, divided among heads like those of the Debian texts.
SCHEMA = Schema(
    [
        Head(name="section", kind=HeadKind.SINGLE_LABEL, labels=tuple(f"section {i}" for i in range(24))),
        Head(name="role", kind=HeadKind.SINGLE_LABEL, labels=tuple(f"role {i}" for i in range(8))),
        Head(name="tags", kind=HeadKind.MULTI_LABEL, labels=tuple(f"tag {i}" for i in range(32))),
    ]
)
MAX_LENGTH = 1024
VOCAB_SIZE = 50257
TOKENIZER_VOCAB_SIZE = 8000  # the demo's
GOLDEN_ROWS = 8
# More than GPT-2's 0.02: if a block added almost nothing to its input, an error in it would not show.
WEIGHT_STD = 0.04
HEAD_STD = 0.1  # over 768 normalized values: logits of about 3, so that scores are as clear as a trained model's

TokenIds = list[list[int]]


def read_texts(path: Path) -> list[str]:
    """The field ``text`` of each JSON line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def debian_corpus(data: Path) -> tuple[list[str], Tokenizer, TokenIds]:
    """All texts of the test split in a fixed random order, a tokenizer like the demo's, and the texts' token ids."""
    texts = list(dict.fromkeys(read_texts(data / "test.jsonl")))
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    tokenizer = train_tokenizer(read_texts(data / "train.jsonl"), TOKENIZER_VOCAB_SIZE)
    return texts, tokenizer, [list(text.token_ids) for text in encode(texts, tokenizer, MAX_LENGTH)]


def of_length(length: int, tokens: int, token_ids: TokenIds) -> TokenIds:
    """Distinct sequences of one length, cut from the joined texts: `tokens` tokens in all, at least one sequence."""
    stream = [token for text in token_ids for token in text]
    pieces = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    distinct = [list(piece) for piece in dict.fromkeys(map(tuple, pieces))]
    wanted = max(1, tokens // length)
    if len(distinct) < wanted:
        raise SystemExit(f"the texts make {len(distinct)} distinct sequences of {length} tokens, not {wanted}")
    return distinct[:wanted]


def random_checkpoint(
    path: Path,
    architecture: Architecture,
    layers: int,
    channels: int,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    schema: Schema = SCHEMA,
    vocabulary: int = VOCAB_SIZE,
    max_length: int = MAX_LENGTH,
    weight_std: float = WEIGHT_STD,
) -> Any:
    """Writes a checkpoint of GPT-2's shape with random weights from a fixed seed. Attention heads have 64 channels.

    Returns:
        The transformers model with the same weights, in eval mode.
    """
    set_seed(0)
    end = tokenizer.token_to_id(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=MAX_LENGTH, n_layer=layers, n_embd=channels, n_head=max(1, channels // 64),
        initializer_range=weight_std, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    concat = architecture == "hidden_state_concat"
    spec = Spec(
        architecture=architecture,
        layer2concat=min(4, layers) if concat else None,
        head_class="ConcatHeadSimple" if concat else "Linear",
        head_args={},
        max_length=max_length,
    )
    model = build_model(config, spec, schema)
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head.") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=HEAD_STD)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=WEIGHT_STD)
    write_checkpoint(
        path,
        config=config.to_dict(),
        spec=spec,
        schema=schema,
        tensors=model.state_dict(),
        tokenizer_json=tokenizer.to_str(),
        golden=golden_rows(texts, model, tokenizer, schema, max_length, rows=GOLDEN_ROWS, seed=0),
        metrics={},
    )
    return model


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Adds options for the model's size; the defaults are GPT-2 small with 64 labels."""
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257, help="rows of the embedding")
    parser.add_argument("--labels", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=1024)


def write_checkpoints(shape: argparse.Namespace, texts: Sequence[str], ours: Path, theirs: Path) -> Tokenizer:
    """Writes one model twice: as our checkpoint `ours`, and for the peers' servers as transformers' folder `theirs`.

    The architecture is ``base`` with a linear head, which transformers has too (``GPT2ForSequenceClassification``), so
    that all compute the same logits. Returns the tokenizer, which is trained on `texts`.
    """
    tokenizer = train_tokenizer(texts, min(TOKENIZER_VOCAB_SIZE, shape.vocabulary))
    labels = tuple(f"label_{number}" for number in range(shape.labels))
    model = random_checkpoint(
        ours, "base", shape.layers, shape.channels, tokenizer, texts,
        schema=Schema([Head(name="label", kind=HeadKind.SINGLE_LABEL, labels=labels)]),
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
    # infinity_emb needs transformers 4, which knows the tokenizer's class by this name.
    described = theirs / "tokenizer_config.json"
    renamed = json.loads(described.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    described.write_text(json.dumps(renamed), encoding="utf-8")
    return tokenizer


class ReferenceClassifier(nn.Module):
    """The same model without this project: transformers' GPT2Model, its state at the last real token, a linear layer.

    Args:
        checkpoint: gives the weights.
        fused_gelu: computes ``gelu_new`` in one kernel instead of transformers' seven; it is the same function.
        attention: transformers' name of an attention implementation.
        masked: masks pads, as is usual. A causal model gives the same logits without, because pads are on the right.
    """

    def __init__(
        self, checkpoint: Checkpoint, fused_gelu: bool = False, attention: str = "sdpa", masked: bool = True
    ) -> None:
        super().__init__()
        self.masked = masked
        self.pooled_layers = checkpoint.spec.layer2concat or 1
        config = GPT2Config(**checkpoint.config)
        config._attn_implementation = attention
        if fused_gelu:
            config.activation_function = "gelu_pytorch_tanh"
        self.body_model = GPT2Model(config)
        self.head = checkpoint.build_head()
        self.load_state_dict(checkpoint.tensors)
        self.eval()

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, num_labels)`` of ids ``(n, length)``; the first `lengths` ``(n,)`` ids of each row are real."""
        mask = None
        if self.masked:
            mask = (torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]).long()
        concat = self.pooled_layers > 1
        output = self.body_model(input_ids, attention_mask=mask, use_cache=False, output_hidden_states=concat)
        states = output.hidden_states[: -self.pooled_layers - 1 : -1] if concat else (output.last_hidden_state,)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        logits: torch.Tensor = self.head(torch.cat([state[rows, lengths - 1] for state in states], dim=-1).float())
        return logits
