"""GPT-2's forward on the CPU, without padding: linear layers run on the real tokens of all texts, packed into a matrix.

Rows pass through a block in chunks, so that what the MLP holds between its two matrices stays in the cache.
Model: Radford et al. 2019; names and layout as in transformers' ``GPT2Model``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import torch
from torch import nn

from polyhead.checkpoint import Body, Checkpoint
from polyhead.engine.cpu.attention import PackedTexts
from polyhead.engine.cpu.linear import Bfloat16Linear, Float32Linear, Int8Linear, Linear
from polyhead.engine.cpu.mlp import mlp
from polyhead.engine.cpu.shares import Workers
from polyhead.engine.micro_batch import MicroBatch
from polyhead.engine.precision import Precision
from polyhead.engine.rows import MULTIPLE, filled_up

CHUNK_ROWS = 512  # rows that pass through a block's MLP at once, at most

LINEARS: dict[Precision, Callable[[torch.Tensor, torch.Tensor], Linear]] = {
    "fp32": Float32Linear,
    "bf16": Bfloat16Linear,
    "int8": Int8Linear,
}


class CPUForward:
    """Hidden states of each text's last token.

    Raises:
        CheckpointError: the activation function is none of those the engine knows.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        body = checkpoint.body
        self._workers = Workers()
        self.token_budget = 1024 * max(2, self._workers.threads)
        self.enough_tokens = self.token_budget // 4
        self.dtype = _dtype(precision)
        tensors = {
            name.removeprefix("body_model."): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith("body_model.")
        }
        self.tokens, self.positions = tensors["wte.weight"], tensors["wpe.weight"]
        self.pooled_layers = checkpoint.spec.layer2concat or 1
        self.blocks = [_Block(body, tensors, layer, precision) for layer in range(body.n_layer)]
        self.ln_f = _layer_norm(body, tensors, "ln_f", self.dtype)

    def pooled(self, batch: MicroBatch) -> torch.Tensor:
        """The head's input, float32 ``(texts, pooled_layers * n_embd)``: the topmost state first, after ``ln_f``."""
        return self._workers.map(self._pooled, batch)

    @torch.inference_mode()
    def _pooled(self, batch: MicroBatch) -> torch.Tensor:
        packed = PackedTexts(batch.lengths)
        ids = torch.tensor([token for text in batch.token_ids for token in text])  # (tokens,)
        embedded = self.tokens[ids] + self.positions[packed.positions]  # (tokens, n_embd)
        hidden = filled_up(embedded.to(self.dtype))
        states: list[torch.Tensor] = []  # each (texts, n_embd)
        for layer, block in enumerate(self.blocks[:-1]):
            block.forward(hidden, packed)
            if layer >= len(self.blocks) - self.pooled_layers:
                states.append(hidden[packed.last])
        states.append(self.ln_f(self.blocks[-1].forward_last(hidden, packed)))
        # Topmost state first, as the seed library concatenates.
        return torch.cat(states[::-1], dim=-1).float()


class _Block:
    """One transformer block; changes the hidden states in place."""

    def __init__(self, body: Body, tensors: Mapping[str, torch.Tensor], layer: int, precision: Precision) -> None:
        self.heads = body.n_head
        self.scale = body.attention_scale(layer)
        prefix = f"h.{layer}"

        def linear(name: str, columns: slice = slice(None)) -> Linear:
            weight, bias = tensors[f"{prefix}.{name}.weight"], tensors[f"{prefix}.{name}.bias"]
            return LINEARS[precision](weight[:, columns], bias[columns])

        dtype = _dtype(precision)
        self.ln_1 = _layer_norm(body, tensors, f"{prefix}.ln_1", dtype)
        self.ln_2 = _layer_norm(body, tensors, f"{prefix}.ln_2", dtype)
        if layer == body.n_layer - 1:
            self.c_query = linear("attn.c_attn", slice(0, body.n_embd))
            self.c_key_value = linear("attn.c_attn", slice(body.n_embd, None))
        else:
            self.c_attn = linear("attn.c_attn")
        self.attn_proj = linear("attn.c_proj")
        self.mlp = mlp(linear("mlp.c_fc"), linear("mlp.c_proj"), body.activation_function)

    def forward(self, hidden: torch.Tensor, packed: PackedTexts) -> None:
        """Takes ``(tokens, n_embd)`` to the block's output."""
        qkv = hidden.new_empty(len(hidden), 3 * hidden.shape[1])
        for rows in _chunks(hidden):
            self.c_attn(self.ln_1(hidden[rows]), out=qkv[rows])
        attended = packed.attend(qkv, self.heads, self.scale, out=torch.zeros_like(hidden))
        for rows in _chunks(hidden):
            self._finish(hidden[rows], attended[rows])

    def forward_last(self, hidden: torch.Tensor, packed: PackedTexts) -> torch.Tensor:
        """The output ``(texts, n_embd)`` of each text's last token, where only these are read."""
        kv = hidden.new_empty(len(hidden), 2 * hidden.shape[1])
        for rows in _chunks(hidden):
            self.c_key_value(self.ln_1(hidden[rows]), out=kv[rows])
        last = filled_up(hidden[packed.last])
        texts = len(packed.last)
        query = self.c_query(self.ln_1(last))[:texts]
        self._finish(last, filled_up(packed.attend_last(query, kv, self.heads, self.scale)))
        return last[:texts]

    def _finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> None:
        self.attn_proj.add_to(hidden, attended)
        self.mlp.add_to(hidden, self.ln_2(hidden))


def _chunks(hidden: torch.Tensor) -> Iterator[slice]:
    """Chunks of even size, so that none is small where there is more than one."""
    chunks = -(-len(hidden) // CHUNK_ROWS)
    ends = [len(hidden) // MULTIPLE * chunk // chunks * MULTIPLE for chunk in range(chunks + 1)]
    return (slice(first, end) for first, end in pairwise(ends))


def _dtype(precision: Precision) -> torch.dtype:
    """Of all but the linear layers' weights."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _layer_norm(body: Body, tensors: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> nn.Module:
    norm = nn.LayerNorm(body.n_embd, body.layer_norm_epsilon)
    norm.load_state_dict({"weight": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]})
    return norm.to(dtype)
