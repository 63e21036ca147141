"""What the engine and its peers compute: one GPT-2 classifier with random weights, and token sequences for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GPT2Config, GPT2Model, set_seed

from polyhead.checkpoint import Architecture, Checkpoint, Spec, write_checkpoint
from polyhead.encode import encode
from polyhead.schema import Head, Schema
from polyhead_training.fitting.checkpoint_writing import golden_rows
from polyhead_training.model.modeling import build_model
from polyhead_training.model.tokenizer import END_OF_TEXT, train_tokenizer

# 64 labels, shared out as the Debian texts' heads are.
SCHEMA = Schema(
    [
        Head(name="section", kind="single_label", labels=tuple(f"section {i}" for i in range(24))),
        Head(name="role", kind="single_label", labels=tuple(f"role {i}" for i in range(8))),
        Head(name="tags", kind="multi_label", labels=tuple(f"tag {i}" for i in range(32))),
    ]
)
MAX_LENGTH = 1024
VOCAB_SIZE = 50257
TOKENIZER_VOCAB_SIZE = 8000  # the demo's
GOLDEN_ROWS = 8
# Wider than GPT-2's 0.02: blocks that add next to nothing to their input would hide an error in them.
WEIGHT_STD = 0.04
HEAD_STD = 0.1  # over 768 normalized values: logits of about 3, so that scores are as decided as a trained model's

GPT2_FIELDS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function",
               "layer_norm_epsilon")  # fmt: skip

TokenIds = list[list[int]]


def debian_texts(data: Path) -> list[str]:
    """All texts of the test split, in an order drawn once and for all."""
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = list(dict.fromkeys(json.loads(line)["text"] for line in lines))
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def debian_tokenizer(data: Path) -> Tokenizer:
    """A byte-level BPE as the demo's, trained on the training split."""
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        return train_tokenizer((json.loads(line)["text"] for line in lines), TOKENIZER_VOCAB_SIZE)


def tokenized(texts: Sequence[str], tokenizer: Tokenizer) -> TokenIds:
    """Token ids of each text, as training and serving read it."""
    return [list(text.token_ids) for text in encode(texts, tokenizer, MAX_LENGTH)]


def of_length(length: int, tokens: int, token_ids: TokenIds) -> TokenIds:
    """Distinct sequences of one length, cut from the texts laid end to end; `tokens` in all, at least one sequence."""
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
) -> Any:
    """Writes a checkpoint of GPT-2's shape with random weights of a fixed seed; heads are 64 channels wide.

    Returns:
        transformers' model behind it, in eval mode.
    """
    set_seed(0)
    end = tokenizer.token_to_id(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=MAX_LENGTH, n_layer=layers, n_embd=channels, n_head=max(1, channels // 64),
        initializer_range=WEIGHT_STD, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    concat = architecture == "hidden_state_concat"
    spec = Spec(
        architecture=architecture,
        layer2concat=min(4, layers) if concat else None,
        head_class="ConcatHeadSimple" if concat else "Linear",
        head_args={},
        max_length=max_length,
    )
    model = build_model(config, spec, schema).eval()
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


class PlainClassifier(nn.Module):
    """What one writes without this project: transformers' GPT2Model, states at the last real token, a linear layer.

    Args:
        checkpoint: whose weights it takes.
        fused_gelu: one kernel for ``gelu_new`` in the place of transformers' seven; the same function.
        attention: transformers' name of an attention implementation.
        masked: pads are masked, as is usual. To the right of the last token that a causal model reads they need not be.
    """

    def __init__(
        self, checkpoint: Checkpoint, fused_gelu: bool = False, attention: str = "sdpa", masked: bool = True
    ) -> None:
        super().__init__()
        fields: dict[str, Any] = {name: value for name, value in checkpoint.config.items() if name in GPT2_FIELDS}
        if fused_gelu:
            fields["activation_function"] = "gelu_pytorch_tanh"
        self.masked = masked
        self.pooled_layers = checkpoint.spec.layer2concat or 1
        self.body_model = GPT2Model(GPT2Config(**fields, attn_implementation=attention))
        self.head = checkpoint.build_head()
        self.load_state_dict(checkpoint.tensors)
        self.eval()

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, num_labels)`` of ids ``(n, length)`` padded on the right, `lengths` ``(n,)`` of them real."""
        mask = None
        if self.masked:
            mask = (torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]).long()
        concat = self.pooled_layers > 1
        output = self.body_model(input_ids, attention_mask=mask, use_cache=False, output_hidden_states=concat)
        states = output.hidden_states[: -self.pooled_layers - 1 : -1] if concat else (output.last_hidden_state,)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        logits: torch.Tensor = self.head(torch.cat([state[rows, lengths - 1] for state in states], dim=-1).float())
        return logits
