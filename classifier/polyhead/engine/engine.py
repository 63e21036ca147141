"""The engine: logits of token sequences. Checks them, computes equal ones once, cuts the rest into micro-batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.checkpoint import Checkpoint
from polyhead.engine.cpu import CPUForward
from polyhead.engine.micro_batch import micro_batches
from polyhead.engine.precision import check_precision
from polyhead.errors import InputError

Part = tuple[NDArray[np.int64], NDArray[np.float32]]


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
        self.forward = CPUForward(checkpoint, self.precision)
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
        logits = np.empty((len(token_ids), self.width), dtype=np.float32)
        for rows, part in self.parts(token_ids):
            logits[rows] = part
        return logits

    def parts(self, token_ids: Sequence[Sequence[int]]) -> Iterator[Part]:
        """The same, a micro-batch at a time, the shortest texts first: positions ``(n,)`` and their logits.

        Raises:
            InputError: before anything is computed.
        """
        self._check(token_ids)
        rows_of: dict[tuple[int, ...], list[int]] = {}  # equal texts are computed once
        for row, ids in enumerate(token_ids):
            rows_of.setdefault(tuple(ids), []).append(row)
        return self._compute(list(rows_of), list(rows_of.values()))

    def _compute(self, texts: list[tuple[int, ...]], rows_of: list[list[int]]) -> Iterator[Part]:
        for batch in micro_batches(texts, self.token_budget, self.forward.enough_tokens):
            with self._turn, torch.inference_mode():
                logits = self._head(self.forward.pooled(batch)).cpu().numpy()
            rows = [rows_of[text] for text in batch.rows]
            copies = [len(positions) for positions in rows]
            yield np.concatenate([np.array(positions) for positions in rows]), np.repeat(logits, copies, axis=0)

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
