"""A padding-free GPT-2 forward: linear layers run on the real tokens of all texts, packed into one matrix.

Only attention sees padding, a little: texts of similar length form a group, padded on the right to its longest. Under a
causal mask a real token never sees a pad to its right, so no mask is needed and no score depends on padding.
Model: Radford et al. 2019; names and layout as in transformers' ``GPT2Model``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from polyhead.checkpoint import Checkpoint
from polyhead.errors import CheckpointError

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}

TOKEN_BUDGET = 8192  # tokens a micro-batch: bounds memory, whatever arrives
GROUP_SLACK = 1.25  # a group's longest text is at most this many times its shortest


class GPT2Engine:
    """Computes logits in float32.

    Raises:
        CheckpointError: the activation function is none of those the engine knows.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        body = checkpoint.body
        if body.activation_function not in ACTIVATIONS:
            raise CheckpointError(
                f"activation_function must be one of {sorted(ACTIVATIONS)}, got {body.activation_function!r}"
            )
        self.body = body
        self.device = torch.device(device)
        self.pooled_layers = checkpoint.spec.layer2concat or 1
        self.activation = ACTIVATIONS[body.activation_function]
        self.head = checkpoint.build_head().to(self.device)
        self.weights = {
            name.removeprefix("body_model."): tensor.to(self.device)
            for name, tensor in checkpoint.tensors.items()
            if name.startswith("body_model.")
        }

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of each token sequence.

        Args:
            token_ids: non-empty sequences, none longer than ``n_positions``; ids below ``vocab_size``.

        Returns:
            float32 ``(len(token_ids), num_labels)`` in the order given.
        """
        # Longest first: the largest micro-batch comes first, and neighbours are of similar length.
        order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]), reverse=True)
        rows: list[NDArray[np.float32]] = []
        for batch in _micro_batches(order, token_ids):
            rows.extend(self._forward([token_ids[i] for i in batch]).cpu().numpy())
        if not rows:
            return np.empty((0, self.head_width), dtype=np.float32)
        result = np.empty((len(rows), len(rows[0])), dtype=np.float32)
        result[order] = rows
        return result

    @property
    def head_width(self) -> int:
        """How many logits a text has."""
        with torch.inference_mode():
            width: int = self.head(torch.zeros(1, self.pooled_layers * self.body.n_embd, device=self.device)).shape[1]
        return width

    def _forward(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = [len(text) for text in texts]
        ids = torch.tensor([token for text in texts for token in text], device=self.device)  # (tokens,)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(self.device)  # (tokens,)
        last = torch.tensor(lengths).cumsum(0).to(self.device) - 1  # (texts,)
        groups = [_Group(start, sizes, self.device) for start, sizes in _similar_lengths(lengths)]

        hidden = self.weights["wte.weight"][ids] + self.weights["wpe.weight"][positions]  # (tokens, n_embd)
        pooled: list[torch.Tensor] = []
        for layer in range(self.body.n_layer):
            hidden = self._block(hidden, layer, groups)
            if layer >= self.body.n_layer - self.pooled_layers:
                pooled.append(hidden[last])  # (texts, n_embd)
        pooled[-1] = self._layer_norm(pooled[-1], "ln_f")
        # Topmost state first, as the seed library concatenates.
        logits: torch.Tensor = self.head(torch.cat(pooled[::-1], dim=-1))  # (texts, num_labels)
        return logits

    def _block(self, hidden: torch.Tensor, layer: int, groups: Sequence[_Group]) -> torch.Tensor:
        name = f"h.{layer}"
        attended = self._attend(
            self._linear(self._layer_norm(hidden, f"{name}.ln_1"), f"{name}.attn.c_attn"), layer, groups
        )
        hidden = hidden + self._linear(attended, f"{name}.attn.c_proj")
        inner = self.activation(self._linear(self._layer_norm(hidden, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        return hidden + self._linear(inner, f"{name}.mlp.c_proj")

    def _attend(self, qkv: torch.Tensor, layer: int, groups: Sequence[_Group]) -> torch.Tensor:
        heads, width = self.body.n_head, self.body.n_embd // self.body.n_head
        scale = 1 / math.sqrt(width) if self.body.scale_attn_weights else 1.0
        if self.body.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        attended = torch.empty_like(qkv[:, : self.body.n_embd])  # (tokens, n_embd)
        for group in groups:
            padded = group.pad(qkv)
            padded = padded.reshape(*padded.shape[:2], 3, heads, width)  # (texts, longest, 3, heads, width)
            query, key, value = padded.permute(2, 0, 3, 1, 4)  # each (texts, heads, longest, width)
            context = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
            group.unpad(context.transpose(1, 2).flatten(2), attended)
        return attended

    def _linear(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        return torch.addmm(self.weights[f"{name}.bias"], hidden, self.weights[f"{name}.weight"])

    def _layer_norm(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(hidden, (self.body.n_embd,), weight, bias, self.body.layer_norm_epsilon)


class _Group:
    """Texts of similar length that stand together in the packed matrix, and the way to a padded tensor and back."""

    def __init__(self, start: int, lengths: Sequence[int], device: torch.device) -> None:
        sizes = torch.tensor(lengths)
        offsets = start + sizes.cumsum(0) - sizes  # (texts,) where each text starts
        places = torch.arange(max(lengths))  # (longest,)
        self.real = (places < sizes[:, None]).to(device)  # (texts, longest)
        # A pad repeats its text's last token: finite values that no real token sees.
        self.index = (offsets[:, None] + torch.minimum(places, sizes[:, None] - 1)).to(device)  # (texts, longest)
        self.rows = slice(start, start + sum(lengths))

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """``(tokens, d)`` to ``(texts, longest, d)``."""
        return packed[self.index]

    def unpad(self, padded: torch.Tensor, packed: torch.Tensor) -> None:
        """Writes ``(texts, longest, d)`` to this group's rows of ``(tokens, d)``."""
        packed[self.rows] = padded[self.real]


def _micro_batches(order: Sequence[int], token_ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    batch: list[int] = []
    tokens = 0
    for i in order:
        if batch and tokens + len(token_ids[i]) > TOKEN_BUDGET:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += len(token_ids[i])
    if batch:
        yield batch


def _similar_lengths(lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Cuts descending lengths into runs; yields each run's first packed row and its lengths."""
    start, run = 0, [lengths[0]]
    for length in lengths[1:]:
        if run[0] > length * GROUP_SLACK:
            yield start, run
            start, run = start + sum(run), []
        run.append(length)
    yield start, run
