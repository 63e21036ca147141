"""What a peer is, and the one that all but the product are: padded batches through a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Infer = Callable[[NDArray[np.int64], NDArray[np.int64]], Logits]


class PeerMissingError(Exception):
    """A peer cannot run here; the message says why."""


class Peer(Protocol):
    """Computes logits of token sequences.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``int8``.
        batch_size: of the next call; None where batches are the peer's own matter.
    """

    name: str
    precision: str
    batch_size: int | None

    def logits(self, token_ids: Sequence[Sequence[int]]) -> Logits:
        """Logits ``(len(token_ids), num_labels)`` in the order given."""

    def warm_up(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Makes ready for texts like these: compiles, allocates, picks the best batch size."""


class PaddedPeer:
    """Batches of a fixed number of texts, padded on the right to their longest.

    Args:
        infer: from ids ``(n, length)`` and lengths ``(n,)`` to logits ``(n, num_labels)``.
        batch_sizes: those that `warm_up` picks from.
        by_length: sort all texts by length first, longest first; else batches are cut in the order given.
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
        sample = token_ids[::3]
        for texts in (
            1,
            min(self._batch_sizes[0], len(token_ids)),
        ):  # what compiles does so once for a single text, once for more
            self._logits([token_ids[-1]] * texts, texts)
        # A batch size above the number of texts is the same work as one equal to it.
        candidates = [size for size in self._batch_sizes if size <= len(token_ids)] or [self._batch_sizes[0]]
        if len(candidates) > 1:
            sample = token_ids[: max(len(sample), candidates[-1])]
        seconds = {}
        for size in candidates:
            started = time.perf_counter()
            self._logits(sample, size)
            seconds[size] = time.perf_counter() - started
        self.batch_size = min(seconds, key=lambda size: seconds[size])

    def _logits(self, token_ids: Sequence[Sequence[int]], batch_size: int) -> Logits:
        rows: list[Logits] = []
        order: list[int] = []
        for batch in self._batches(token_ids, batch_size):
            lengths = np.array([len(token_ids[i]) for i in batch])
            ids = np.zeros((len(batch), lengths.max()), dtype=np.int64)
            for row, i in zip(ids, batch, strict=True):
                row[: len(token_ids[i])] = token_ids[i]
            rows.append(self._infer(ids, lengths))
            order.extend(batch)
        result = np.concatenate(rows)
        result[order] = result.copy()
        return result

    def _batches(self, token_ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
        order = list(range(len(token_ids)))
        if self._by_length:
            order.sort(key=lambda i: len(token_ids[i]), reverse=True)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
