"""What a peer is, and the proof that a peer computes the same model: its scores are compared with transformers'."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.workload import SCHEMA, ReferenceClassifier
from polyhead.checkpoint import Checkpoint
from polyhead.decode import Scores, to_scores
from polyhead.schema import HeadKind

Logits = NDArray[np.float32]
# The largest difference of a score that rounding can explain. A wrong layer, sum or token moves the scores of random
# weights much more. What may be served is another matter: the engine's own gate is stricter.
EXPLAINED = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.5}
THRESHOLD = 0.5

Infer = Callable[[NDArray[np.int64], NDArray[np.int64]], Logits]


class PeerMissingError(Exception):
    """A peer cannot run here; the message says why."""


class Peer(Protocol):
    """Computes logits of token sequences.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``int8``.
        batch_size: of the next call; None if the peer makes its own batches.
    """

    name: str
    precision: str
    batch_size: int | None

    def logits(self, token_ids: Sequence[Sequence[int]]) -> Logits:
        """Logits ``(len(token_ids), num_labels)`` in the order given."""

    def warm_up(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Prepares for texts like these: compiles, allocates, picks the best batch size."""


class PaddedPeer:
    """Sends batches of a fixed number of texts, padded on the right to their longest, through a function.

    Args:
        infer: from ids ``(n, length)`` and lengths ``(n,)`` to logits ``(n, num_labels)``.
        batch_sizes: those that `warm_up` picks from.
        by_length: sorts all texts by length first, longest first; otherwise batches are cut in the order given.
    """

    def __init__(
        self, name: str, precision: str, infer: Infer, batch_sizes: Sequence[int], by_length: bool = True
    ) -> None:
        self.name = name
        self.precision = precision
        self.batch_size: int | None = batch_sizes[0]
        self._infer = infer
        self._batch_sizes = batch_sizes
        self._by_length = by_length

    def logits(self, token_ids: Sequence[Sequence[int]]) -> Logits:
        """Logits in the order given."""
        return self._logits(token_ids, self.batch_size or 1)

    def warm_up(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Runs every batch size on a third of the texts and keeps the fastest."""
        # A compiled model is compiled once for a single text and once for more.
        for texts in (1, min(self._batch_sizes[0], len(token_ids))):
            self._logits([token_ids[-1]] * texts, texts)
        # A batch size above the number of texts is the same work as one equal to it.
        candidates = [size for size in self._batch_sizes if size <= len(token_ids)] or [self._batch_sizes[0]]
        few = token_ids[::3]
        sample = token_ids[: max(len(few), candidates[-1])] if len(candidates) > 1 else few
        seconds = {}
        for size in candidates:
            started = time.perf_counter()
            self._logits(sample, size)
            seconds[size] = time.perf_counter() - started
        self.batch_size = min(seconds, key=lambda size: seconds[size])

    def _logits(self, token_ids: Sequence[Sequence[int]], batch_size: int) -> Logits:
        order = list(range(len(token_ids)))
        if self._by_length:
            order.sort(key=lambda i: len(token_ids[i]), reverse=True)
        rows: list[Logits] = []
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            lengths = np.array([len(token_ids[i]) for i in batch])
            ids = np.zeros((len(batch), lengths.max()), dtype=np.int64)
            for row, i in zip(ids, batch, strict=True):
                row[: len(token_ids[i])] = token_ids[i]
            rows.append(self._infer(ids, lengths))
        result = np.concatenate(rows)
        result[order] = result.copy()
        return result


@torch.inference_mode()
def reference_logits(checkpoint: Checkpoint, token_ids: Sequence[Sequence[int]], device: str) -> Logits:
    """The logits of transformers in fp32, one text per forward pass, so that there is no padding."""
    model = ReferenceClassifier(checkpoint).to(device)
    rows = [
        model(torch.tensor([ids], device=device), torch.tensor([len(ids)], device=device)).cpu().numpy()
        for ids in token_ids
    ]
    logits: Logits = np.concatenate(rows)
    return logits


def compare(title: str, precision: str, logits: Logits, reference: Logits) -> dict[str, Any]:
    """Returns ``max_score_error``, and ``flips``: the number of texts for which a head gives another answer.

    Raises:
        SystemExit: a score is further from the reference than rounding explains, or not finite.
    """
    if not np.isfinite(logits).all():
        raise SystemExit(f"{title}: logits are not finite")
    scores, expected = to_scores(logits, SCHEMA), to_scores(reference, SCHEMA)
    error = float(np.abs(scores - expected).max())
    if error > EXPLAINED[precision]:
        raise SystemExit(f"{title}: a score is off by {error:.3g}, more than {EXPLAINED[precision]} ({precision})")
    flipped = np.any(_answers(scores) != _answers(expected), axis=1)
    return {"max_score_error": float(f"{error:.2g}"), "flips": int(flipped.sum())}


def _answers(scores: Scores) -> Scores:
    """One column per single-label head (its label), and one per label of the other heads (whether it applies)."""
    columns, start = [], 0
    for head in SCHEMA:
        part = scores[:, start : start + head.width]
        single = head.kind is HeadKind.SINGLE_LABEL
        columns.append(part.argmax(axis=1)[:, None] if single else part >= THRESHOLD)
        start += head.width
    return np.concatenate(columns, axis=1).astype(np.float32)
