"""A step of `benchmarks.gpu_check`: attention alone, by the length of the texts.

It says which attention is faster up to which longest text, so what `polyhead.engine.cuda.packed.SHORT` should be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu_check import Record, StepContext
from benchmarks.gpu_steps import cut, device_ms, median_ms, usual_checkpoint
from polyhead.engine.cuda.attention import CAUSAL, FULL, Attention, AttentionByLength, attention_for
from polyhead.engine.cuda.forward import DTYPES
from polyhead.engine.cuda.packed import SHORT, PackedShape, cuda_recorder
from polyhead.precision import fastest_precision

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
CALLS = 12  # in a graph, so that launching from Python does not count


def attention(given: StepContext, record: Record) -> None:
    """The time of one layer's attention in each kernel, for all tokens and for last tokens only."""
    checkpoint, token_ids = usual_checkpoint(given)
    heads, width = checkpoint.body.n_head, checkpoint.body.n_embd // checkpoint.body.n_head
    dtype = DTYPES[fastest_precision(torch.device(given.device))]
    chosen = attention_for(width, dtype, torch.device(given.device))
    kernels: dict[str, Attention] = {getattr(chosen, "__name__", "?"): chosen}
    if isinstance(chosen, AttentionByLength):
        kernels = {"tiles": chosen.short, "flash": chosen.long}
    tokens = 64 if given.tiny else 16384
    batches = {f"texts of {length}": [length] * (tokens // length) for length in LENGTHS if length <= tokens}
    batches["mixed texts"] = [len(ids) for ids in cut(token_ids, tokens)]
    batches["mixed short texts"] = [length for length in batches["mixed texts"] if length <= SHORT]
    shapes = {name: PackedShape(sum(lengths), len(lengths), max(lengths)) for name, lengths in batches.items()}
    batches["in a graph's shape"] = [len(ids) for ids in token_ids[:16] if len(ids) <= SHORT]
    shapes["in a graph's shape"] = PackedShape(
        sum(batches["in a graph's shape"]), 128, SHORT
    )  # spare texts have no tokens
    for name, (all_tokens, texts, longest) in shapes.items():
        lengths = torch.tensor([0, *batches[name], *[0] * (texts - len(batches[name]))], device=given.device)
        starts, lasts = (counts.cumsum(0).to(torch.int32) for counts in (lengths, lengths.clamp(max=1)))
        query, key, value = torch.randn(all_tokens, 3, heads, width, device=given.device).to(dtype).unbind(1)
        last = torch.randn(texts, heads, width, device=given.device).to(dtype)
        measured: dict[str, float] = {}
        for kernel, compute in kernels.items():
            of_all = partial(compute, query, key, value, starts, starts, longest, longest, window_size=CAUSAL)
            of_last = partial(compute, last, key, value, lasts, starts, 1, longest, window_size=FULL)
            measured[f"{kernel}, us"] = _layer_us(given.device, partial(of_all, scale=0.125))
            measured[f"{kernel}, last tokens, us"] = _layer_us(given.device, partial(of_last, scale=0.125))
        record(name, {"texts": len(batches[name]), "longest": longest} | measured)


def _layer_us(device: str, call: Callable[[], torch.Tensor]) -> float:
    if device != "cuda":
        return round(1000 * median_ms(call, 2), 1)
    replay, _ = cuda_recorder(torch.device(device))(lambda: [call() for _ in range(CALLS)][-1])
    return round(1000 * device_ms(device, replay, 20) / CALLS, 1)
