"""transformers' GPT2Model: eager, compiled, and with the attention implementations that it offers on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.peer import Logits, PaddedPeer
from benchmarks.workload import PlainClassifier
from polyhead.checkpoint import Checkpoint

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformers_peer(
    name: str,
    checkpoint: Checkpoint,
    device: str,
    precision: str,
    batch_sizes: Sequence[int],
    *,
    plain: bool = False,
    attention: str = "sdpa",
    compiled: bool = False,
) -> PaddedPeer:
    """Batches through a GPT2Model.

    Args:
        plain: as people run it: texts in the order given, pads masked, transformers' own GELU. Else all that makes the
            same model faster: texts sorted by length, GELU in one kernel, and no mask, which lets attention use its
            causal kernel.
        attention: transformers' name of an attention implementation.
        compiled: with torch.compile for any batch size and length.
    """
    model = PlainClassifier(checkpoint, fused_gelu=not plain, attention=attention, masked=plain)
    model.body_model.to(DTYPES[precision])  # the head stays in fp32
    model.to(device)
    forward = torch.compile(model, dynamic=True) if compiled else model

    @torch.inference_mode()
    def infer(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Logits:
        logits: Logits = forward(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)).cpu().numpy()
        return logits

    return PaddedPeer(name, precision, infer, batch_sizes, by_length=not plain)
