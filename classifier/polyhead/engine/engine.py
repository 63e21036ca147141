"""The engine: logits of token sequences. Checks them, computes equal ones once, cuts the rest into micro-batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.checkpoint import Checkpoint
from polyhead.engine.cpu.forward import CPUForward
from polyhead.engine.micro_batch import micro_batches
from polyhead.engine.precision import Precision, check_precision
from polyhead.engine.rows import filled_up
from polyhead.errors import InputError

if TYPE_CHECKING:
    from polyhead.engine.cuda.forward import CUDAForward


class Engine:
    """Computes logits; safe to call from several threads, which take turns.

    Args:
        checkpoint: what to compute.
        device: ``cpu`` or a CUDA device.
        precision: of the linear layers, one of `PRECISIONS`; the head is always computed in float32.
        token_budget: most tokens computed at once, which bounds memory; the device's own if None.

    Raises:
        CheckpointError: the activation function is none of those the engine knows.
        OptionError: the precision is unknown, or not for this device.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: str = "cpu", precision: str = "fp32", token_budget: int | None = None
    ) -> None:
        self.body = checkpoint.body
        self.device = torch.device(device)
        self.precision = check_precision(precision, self.device)
        self.forward = _forward(checkpoint, self.device, self.precision)
        self.token_budget = token_budget or self.forward.token_budget
        self.width = checkpoint.schema.width
        self._head = checkpoint.build_head().to(self.device)
        self._turn = threading.Lock()

    def logits(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of each token sequence.

        Args:
            token_ids: non-empty sequences, none longer than ``n_positions``; ids below ``vocab_size``.

        Returns:
            float32 ``(len(token_ids), num_labels)`` in the order given.

        Raises:
            InputError: names the sequence that cannot be computed, and what is allowed.
        """
        self._check(token_ids)
        rows_of = _rows_of_equal(token_ids)
        logits = np.empty((len(token_ids), self.width), dtype=np.float32)
        with self._turn, torch.inference_mode():
            # A GPU works through the queue while the next micro-batch is packed; only reading waits for it.
            parts = [
                (batch, self._head(filled_up(self.forward.pooled(batch)))[: len(batch.rows)])
                for batch in micro_batches(list(rows_of), self.token_budget, self.forward.enough_tokens)
            ]
            texts = list(rows_of.values())
            for batch, part in parts:
                for text, row in zip(batch.rows, part.cpu().numpy(), strict=True):
                    logits[texts[text]] = row
        return logits

    def plan(self, token_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Positions of the sequences by the micro-batch that computes them, the shortest first.

        Computing one entry after the other costs what computing all at once does.
        """
        rows_of = _rows_of_equal(token_ids)
        texts = list(rows_of.values())
        batches = micro_batches(list(rows_of), self.token_budget, self.forward.enough_tokens)
        return [[row for text in batch.rows for row in texts[text]] for batch in batches]

    def _check(self, token_ids: Sequence[Sequence[int]]) -> None:
        for position, ids in enumerate(token_ids):
            if not 1 <= len(ids) <= self.body.n_positions:
                raise InputError(f"text {position} has {len(ids)} tokens; it must have 1 to {self.body.n_positions}")
            array = np.asarray(ids)
            if array.dtype.kind not in "iu" or array.ndim != 1:
                raise InputError(f"text {position}: token ids must be whole numbers, got {array.dtype}")
            if array.min() < 0 or array.max() >= self.body.vocab_size:
                largest = self.body.vocab_size - 1
                wrong = next(token for token in ids if not 0 <= token <= largest)
                raise InputError(f"text {position} has token id {wrong}; ids must lie in 0 to {largest}")


def _forward(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> CPUForward | CUDAForward:
    if device.type == "cpu":
        return CPUForward(checkpoint, precision)
    from polyhead.engine.cuda.forward import CUDAForward  # what it imports of torch takes a CPU server's time

    return CUDAForward(checkpoint, device, precision)


def _rows_of_equal(token_ids: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Where each distinct sequence stands: equal ones are computed once."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(token_ids):
        rows.setdefault(tuple(ids), []).append(row)
    return rows
