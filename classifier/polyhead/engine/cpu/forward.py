"""GPT-2's forward pass on the CPU, without padding: linear layers run on the packed real tokens of all texts.

Rows pass through a block in chunks, so that the MLP's intermediate values stay in the cache.
Model: Radford et al. 2019; names and layout as in transformers' ``GPT2Model``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import numpy as np
import torch

from polyhead.body import Body
from polyhead.checkpoint import Checkpoint
from polyhead.engine.cpu.attention import PackedTexts, has_attention_kernel
from polyhead.engine.cpu.float32 import LayerNorm, Linear
from polyhead.engine.cpu.int8 import even_channels
from polyhead.engine.cpu.layers import (
    attention_dtype,
    block_precision,
    fast_head,
    has_stable_products,
    make_linear,
    make_mlp,
)
from polyhead.engine.micro_batch import MicroBatch, even_shares
from polyhead.heads import BUILT_IN
from polyhead.precision import Precision

CHUNK_ROWS = 512  # the most rows that pass through a block's MLP at once
PASSING_POLL_S = 0.01  # how often a micro-batch on several workers looks for texts that may pass it

# Returns what to compute before the next layer, or None.
BetweenLayers = Callable[[], Callable[[], None] | None]


def activation_bytes(body: Body, tokens: int) -> int:
    """An upper bound for the memory, beyond the weights, of a micro-batch of so many tokens at any precision.

    Counted in float32 matrices of (tokens, n_embd): the residual stream, ``c_attn``, attention's result and the pooled
    states are at most 12, and the C allocator keeps freed blocks. A process's peak showed 5.6 to 15, most for texts of
    two tokens; the bound is 20. The MLP's rows pass in chunks.
    """
    chunks = min(tokens, CHUNK_ROWS * torch.get_num_threads())
    return 4 * (20 * body.n_embd * tokens + 2 * chunks * (body.n_embd + body.inner_width))


class CPUForward:
    """Computes logits; the head is always float32.

    Raises:
        CheckpointError: the engine does not know the activation function.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        body = checkpoint.body
        # Single-threaded workers: small matrix products side by side are faster than one product on all cores.
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, "polyhead-engine", torch.set_num_threads, (1,))
        self.between_layers: BetweenLayers = lambda: None
        self.computed_layers = 0  # of all micro-batches: shows progress within a long one
        self._is_passing = False
        self._workers_may_run = threading.Event()
        self._workers_may_run.set()
        self.token_budget = 1024 * max(2, self._threads)
        self.enough_tokens = self.token_budget // 4
        self.dtype = _dtype(precision)
        tensors = checkpoint.tensors_of("body_model")
        self.tokens, self.positions = tensors["wte.weight"], tensors["wpe.weight"]
        self.pooled_layers = checkpoint.spec.layer2concat or 1
        self.blocks = [_Block(body, tensors, layer, precision) for layer in range(body.n_layer)]
        self.ln_f = _layer_norm(body, tensors, "ln_f")
        head = checkpoint.build_head()
        self.head = fast_head(head)
        self.is_batch_invariant = (
            type(head) in BUILT_IN.values() and has_attention_kernel(body) and has_stable_products(precision, body)
        )

    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """float32 ``(texts, num_labels)``."""
        logits: torch.Tensor = self.head(self.pooled(batch))
        return logits

    def pooled(self, batch: MicroBatch) -> torch.Tensor:
        """The head's input, float32 ``(texts, pooled_layers * n_embd)``: the topmost state first, after ``ln_f``."""
        if self._is_passing:  # the workers are with the micro-batch that is passed
            return self._pooled(batch, _nothing)
        shares = even_shares(batch, self._threads)
        if len(shares) == 1:
            return self._pooled(batch, self._let_pass)
        running = [self._pool.submit(self._pooled, share, self._pause_worker) for share in shares]
        while wait(running, PASSING_POLL_S).not_done:
            self._let_pass()
        parts = [share.result() for share in running]
        torch.set_num_threads(self._threads)  # a new thread starts with the setting that was made last, the workers' 1
        result = parts[0].new_empty(len(batch.rows), parts[0].shape[1])
        for share, part in enumerate(parts):
            result[share :: len(parts)] = part
        return result

    def _let_pass(self) -> None:
        """Computes what `between_layers` returns, while the workers pause."""
        while (compute := self.between_layers()) is not None:
            self._is_passing = True
            self._workers_may_run.clear()
            torch.set_num_threads(self._threads)
            try:
                compute()
            finally:
                self._is_passing = False
                self._workers_may_run.set()

    def _pause_worker(self) -> None:
        self._workers_may_run.wait()

    @torch.inference_mode()
    def _pooled(self, batch: MicroBatch, between_layers: Callable[[], None]) -> torch.Tensor:
        packed = PackedTexts(batch.lengths)
        ids = torch.from_numpy(np.concatenate(batch.token_ids))  # (tokens,)
        embedded = self.tokens[ids].add_(self.positions[packed.positions])  # (tokens, n_embd)
        hidden = embedded.to(self.dtype)
        is_embedding_pooled = self.pooled_layers > len(self.blocks)
        states = [hidden[packed.last]] if is_embedding_pooled else []  # each (texts, n_embd)
        for layer, block in enumerate(self.blocks[:-1]):
            block.forward(hidden, packed)
            if layer >= len(self.blocks) - self.pooled_layers:
                states.append(hidden[packed.last])
            self.computed_layers += 1
            between_layers()
        states.append(self.ln_f(self.blocks[-1].forward_last(hidden, packed)))
        # Topmost state first, as that_nlp_library concatenates.
        return torch.cat(states[::-1], dim=-1).float()


class _Block:
    """One transformer block; changes the hidden states in place."""

    def __init__(self, body: Body, tensors: Mapping[str, torch.Tensor], layer: int, precision: Precision) -> None:
        self.heads = body.n_head
        self.scale = body.attention_scale(layer)
        prefix = f"h.{layer}"
        self.qkv_dtype = attention_dtype(precision, body)
        precision = block_precision(precision, layer, body)
        if precision == "int8":
            tensors = even_channels(tensors, prefix)

        def weights(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[f"{prefix}.{name}.weight"], tensors[f"{prefix}.{name}.bias"]

        def linear(name: str, columns: slice = slice(None)) -> Linear:
            weight, bias = weights(name)
            return make_linear(precision, body, weight[:, columns], bias[columns])

        self.ln_1 = _layer_norm(body, tensors, f"{prefix}.ln_1")
        self.ln_2 = _layer_norm(body, tensors, f"{prefix}.ln_2")
        if layer == body.n_layer - 1:
            self.c_query = linear("attn.c_attn", slice(0, body.n_embd))
            self.c_key_value = linear("attn.c_attn", slice(body.n_embd, None))
        else:
            self.c_attn = linear("attn.c_attn")
        self.attn_proj = linear("attn.c_proj")
        self.mlp = make_mlp(precision, body, weights("mlp.c_fc"), weights("mlp.c_proj"))

    def forward(self, hidden: torch.Tensor, packed: PackedTexts) -> None:
        """Replaces ``(tokens, n_embd)`` by the block's output."""
        qkv = hidden.new_empty(len(hidden), 3 * hidden.shape[1], dtype=self.qkv_dtype)
        for rows in _chunks(hidden):
            self.c_attn(self.ln_1(hidden[rows]), out=qkv[rows])
        attended = packed.attend(qkv, self.heads, self.scale, out=torch.empty_like(hidden))
        for rows in _chunks(hidden):
            self._finish(hidden[rows], attended[rows])

    def forward_last(self, hidden: torch.Tensor, packed: PackedTexts) -> torch.Tensor:
        """The output ``(texts, n_embd)`` for each text's last token only."""
        kv = hidden.new_empty(len(hidden), 2 * hidden.shape[1], dtype=self.qkv_dtype)
        for rows in _chunks(hidden):
            self.c_key_value(self.ln_1(hidden[rows]), out=kv[rows])
        last = hidden[packed.last]
        query = self.c_query(self.ln_1(last), out=torch.empty_like(last, dtype=self.qkv_dtype))
        attended = packed.attend_last(query, kv, self.heads, self.scale)
        self._finish(last, attended.to(last.dtype))
        return last

    def _finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> None:
        self.attn_proj.add_to(hidden, attended)
        self.mlp.add_to(hidden, self.ln_2(hidden))


def _nothing() -> None:
    """Lets no text pass."""


def _chunks(hidden: torch.Tensor) -> Iterator[slice]:
    """Chunks of even size, so that no chunk is small if there are several."""
    chunks = -(-len(hidden) // CHUNK_ROWS)
    ends = [len(hidden) * chunk // chunks for chunk in range(chunks + 1)]
    return (slice(first, end) for first, end in pairwise(ends))


def _dtype(precision: Precision) -> torch.dtype:
    """The type of everything except the linear layers' weights."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _layer_norm(body: Body, tensors: Mapping[str, torch.Tensor], name: str) -> LayerNorm:
    return LayerNorm(tensors[f"{name}.weight"], tensors[f"{name}.bias"], body.layer_norm_epsilon)
