"""The forward pass on a GPU: packed texts, flash attention, and CUDA graphs for small batches.

Weights, activations and residual stream are bf16; GEMMs, softmax and layer norms sum in fp32. fp32 is also used where
it is cheap: for the sum of embeddings, and for sums and norms after the final block's attention, on one row per text.
Model: Radford et al. 2019; names as in transformers' ``GPT2Model``.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

from polyhead.checkpoint import Checkpoint
from polyhead.engine.cuda.attention import CAUSAL, FULL, Attention, attention_for, padded_attention
from polyhead.engine.cuda.norm import StreamNorms, norms_for
from polyhead.engine.cuda.packed import Graphs, Packed, PackedShape, Record, cuda_recorder, graph_shapes, pack
from polyhead.engine.micro_batch import MicroBatch
from polyhead.heads import BUILT_IN
from polyhead.precision import Precision

logger = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CUDAForward:
    """Computes logits. A built-in head is part of a recorded pass; another class may do what cannot be recorded.

    Args:
        checkpoint: the model.
        device: a CUDA device; on the CPU the same code runs without graphs, for tests.
        precision: ``bf16`` or ``fp32``.
        attention: the attention to use instead of ``attention_for``'s choice.
        norms: residual stream and layer norms to use instead of ``norms_for``'s choice.
        record: how to record passes, instead of as CUDA graphs.

    Raises:
        CheckpointError: the engine does not know the activation function.
    """

    token_budget = 32768
    enough_tokens = 16384  # GEMMs of more rows are no faster

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device | str = "cuda",
        precision: Precision = "bf16",
        *,
        attention: Attention | None = None,
        norms: StreamNorms | None = None,
        record: Record | None = None,
    ) -> None:
        self.body = body = checkpoint.body
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.head_width = body.n_embd // body.n_head
        self.pooled_layers = checkpoint.spec.layer2concat or 1
        self.activation = body.activation()
        if self.device.type == "cuda":
            sum_products_in_fp32()
        self.fuses_gelu = body.has_tanh_gelu and fuses_tanh_gelu(self.device, self.dtype)
        self.attention = attention or attention_for(self.head_width, self.dtype, self.device)
        self.head = checkpoint.build_head().to(self.device)
        self.has_built_in_head = type(self.head) in BUILT_IN.values()
        self.norms = norms or norms_for(body.n_embd, self.dtype, self.device)
        self._load(checkpoint)
        if record is None and self.device.type == "cuda" and self.attention is not padded_attention:
            record = cuda_recorder(self.device)
        self.graphs: Graphs | None = None
        if record is not None:
            with torch.inference_mode():
                self.graphs = Graphs(graph_shapes(checkpoint.spec.max_length), self._pass, record, self.device)

    @torch.inference_mode()
    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """Queues the computation and returns at once, so that the host packs the next batch while the device works.

        Args:
            batch: at least one text; ids below ``vocab_size``, lengths from 1 to ``n_positions``.

        Returns:
            float32 ``(texts, num_labels)`` on the device.
        """
        if self.graphs and (shape := self.graphs.shape_for(batch)):
            computed = self.graphs.run(batch, shape)
        else:
            shape = PackedShape.of(batch)
            host = pack(batch, shape, pinned=self.device.type == "cuda")
            computed = self._pass(Packed.view(host.to(self.device, non_blocking=True), shape))
        return (computed if self.has_built_in_head else self._head_logits(computed))[: len(batch.rows)]

    def _load(self, checkpoint: Checkpoint) -> None:
        """Folds each layer norm's gain and bias into the linear layer that follows, in fp32; then rounds.

        Weights become (out, in), the layout of ``F.linear``.
        """
        tensors = {name: tensor.to(self.device) for name, tensor in checkpoint.tensors_of("body_model").items()}
        self.token_table, self.position_table = tensors["wte.weight"], tensors["wpe.weight"]
        self.final_norm = tensors["ln_f.weight"], tensors["ln_f.bias"]
        self.linears: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in range(self.body.n_layer):
            for name, norm in (
                ("attn.c_attn", "ln_1"),
                ("attn.c_proj", None),
                ("mlp.c_fc", "ln_2"),
                ("mlp.c_proj", None),
            ):
                weight, bias = (tensors[f"h.{layer}.{name}.{kind}"] for kind in ("weight", "bias"))
                if norm:
                    bias = bias + tensors[f"h.{layer}.{norm}.bias"] @ weight
                    weight = tensors[f"h.{layer}.{norm}.weight"][:, None] * weight
                self.linears[f"h.{layer}.{name}"] = (weight.t().contiguous().to(self.dtype), bias.to(self.dtype))

    def _pass(self, packed: Packed) -> torch.Tensor:
        """What a graph records: logits, or the head's input if the head is not built in."""
        pooled = self._pooled(packed)
        return self._head_logits(pooled) if self.has_built_in_head else pooled

    def _head_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(pooled)  # (at least the texts, num_labels)
        return logits

    def _pooled(self, packed: Packed) -> torch.Tensor:
        """The head's input, float32 (texts, pooled_layers * n_embd), topmost state first, as in that_nlp_library."""
        tables = self.token_table, self.position_table
        epsilon = self.body.layer_norm_epsilon
        hidden, normed = self.norms.embed(packed.ids, packed.positions, *tables, epsilon, self.dtype)
        pooled: list[torch.Tensor] = []
        for layer in range(self.body.n_layer):  # pooled are states before a block; the first is the sum of embeddings
            if layer > self.body.n_layer - self.pooled_layers:
                pooled.append(hidden.index_select(0, packed.last).float())  # (texts, n_embd)
            if layer < self.body.n_layer - 1:
                hidden, normed = self._block(hidden, normed, layer, packed)
        top = self._final_block(hidden, normed, packed)
        pooled.append(F.layer_norm(top, (self.body.n_embd,), *self.final_norm, epsilon))
        return torch.cat(pooled[::-1], dim=-1)

    def _block(
        self, hidden: torch.Tensor, normed: torch.Tensor, layer: int, packed: Packed
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after a block, and its norm; both are also what the block reads."""
        name, epsilon = f"h.{layer}", self.body.layer_norm_epsilon
        qkv = self._linear(normed, f"{name}.attn.c_attn")  # (tokens, 3 * n_embd)
        query, key, value = qkv.view(-1, 3, self.body.n_head, self.head_width).unbind(1)
        longest = packed.shape.longest
        attended = self.attention(
            query, key, value, packed.starts, packed.starts, longest, longest,
            scale=self.body.attention_scale(layer), window_size=CAUSAL,
        )  # fmt: skip
        change = self._linear(attended.reshape(hidden.shape), f"{name}.attn.c_proj")
        hidden, normed = self.norms.add(hidden, change, epsilon)
        return self.norms.add(hidden, self._linear(self._expand(normed, name), f"{name}.mlp.c_proj"), epsilon)

    def _final_block(self, hidden: torch.Tensor, normed: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Keys and values for all tokens; everything else only for last tokens, which attend to their whole texts."""
        layer, width = self.body.n_layer - 1, self.body.n_embd
        name = f"h.{layer}"
        weight, bias = self.linears[f"{name}.attn.c_attn"]
        key, value = (
            F.linear(normed, weight[width:], bias[width:]).view(-1, 2, self.body.n_head, self.head_width).unbind(1)
        )
        query = F.linear(normed.index_select(0, packed.last), weight[:width], bias[:width])  # (texts, n_embd)
        attended = self.attention(
            query.view(-1, self.body.n_head, self.head_width), key, value,
            packed.query_starts, packed.starts, 1, packed.shape.longest,
            scale=self.body.attention_scale(layer), window_size=FULL,
        )  # fmt: skip
        last = hidden.index_select(0, packed.last).float()
        last = last + self._linear(attended.reshape(last.shape), f"{name}.attn.c_proj")
        return last + self._linear(self._expand(self._norm(last).to(self.dtype), name), f"{name}.mlp.c_proj")

    def _expand(self, normed: torch.Tensor, name: str) -> torch.Tensor:
        if self.fuses_gelu:
            weight, bias = self.linears[f"{name}.mlp.c_fc"]
            return torch._addmm_activation(bias, normed, weight.t(), use_gelu=True)
        return self.activation(self._linear(normed, f"{name}.mlp.c_fc"))

    def _linear(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(hidden, *self.linears[name])

    def _norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden, (self.body.n_embd,), eps=self.body.layer_norm_epsilon)


def sum_products_in_fp32() -> None:
    """Makes cuBLAS add up the parts of a bf16 or fp16 product in float32, in the whole process.

    By default it may round each part first if it divides a product's inner dimension among blocks. That costs accuracy,
    and a row's bits then depend on the number of rows. A graph keeps what held when it was recorded.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def fuses_tanh_gelu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch applies bias and tanh-GELU inside the GEMM, found by trying it.

    On CUDA it does, through cuBLASLt, in a private function; on the CPU that function applies the erf form of GELU.
    The comparison allows 1e-3, because bf16 is no finer near 1.
    """
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    inputs = torch.linspace(-6, 6, 64 * 64, device=device).view(64, 64).to(dtype)
    try:
        fused = torch._addmm_activation(
            inputs.new_ones(64), inputs, torch.eye(64, device=device, dtype=dtype), use_gelu=True
        )
        expected = F.gelu(inputs.float() + 1, approximate="tanh")
        torch.testing.assert_close(fused.float(), expected, rtol=2**-7, atol=1e-3)
    except (AttributeError, AssertionError, RuntimeError) as error:
        logger.warning("GELU is not fused into its GEMM: %s", error)
        return False
    return True
