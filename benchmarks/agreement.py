"""Whether a peer computes what transformers computes in fp32: how far its scores are, and how many answers differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import Logits
from benchmarks.workload import SCHEMA, PlainClassifier
from polyhead.checkpoint import Checkpoint
from polyhead.decode import Scores, to_scores

# A score's largest distance. Not what may be served (the engine's own gate is tighter), but what rounding can explain:
# another sum, layer or token read moves random weights' scores by far more.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.5}
THRESHOLD = 0.5


@torch.inference_mode()
def reference_logits(checkpoint: Checkpoint, token_ids: Sequence[Sequence[int]], device: str) -> Logits:
    """transformers in fp32, one text a forward, so that no padding is in play."""
    model = PlainClassifier(checkpoint).to(device)
    rows = [
        model(torch.tensor([ids], device=device), torch.tensor([len(ids)], device=device)).cpu().numpy()
        for ids in token_ids
    ]
    logits: Logits = np.concatenate(rows)
    return logits


def compare(title: str, precision: str, logits: Logits, reference: Logits) -> dict[str, Any]:
    """``max_score_error``, and ``flips``: texts of which any head answers otherwise.

    Raises:
        SystemExit: scores are further from the reference than the precision explains, or not finite.
    """
    if not np.isfinite(logits).all():
        raise SystemExit(f"{title}: logits are not finite")
    scores, expected = to_scores(logits, SCHEMA), to_scores(reference, SCHEMA)
    error = float(np.abs(scores - expected).max())
    if error > TOLERANCE[precision]:
        raise SystemExit(f"{title}: a score is off by {error:.3g}, more than {TOLERANCE[precision]} ({precision})")
    flipped = np.any(_answers(scores) != _answers(expected), axis=1)
    return {"max_score_error": float(f"{error:.2g}"), "flips": int(flipped.sum())}


def _answers(scores: Scores) -> Scores:
    """One column a single-label head (its label), one a label of the others (whether it holds)."""
    columns, start = [], 0
    for head in SCHEMA:
        part = scores[:, start : start + head.width]
        single = head.kind == "single_label"
        columns.append(part.argmax(axis=1)[:, None] if single else part >= THRESHOLD)
        start += head.width
    return np.concatenate(columns, axis=1).astype(np.float32)
