"""A micro-batch shared out among threads of one core each: small GEMMs side by side beat one GEMM on all cores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from polyhead.engine.micro_batch import MicroBatch

SHARE_TOKENS = 128  # a share of fewer tokens is not worth a thread of its own
BALANCE = 1.25  # the largest share has at most this many times the tokens of a fair one


class Workers:
    """As many single-threaded workers as torch has threads where this is made."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.threads, "polyhead-engine", torch.set_num_threads, (1,))

    def map(self, pooled: Callable[[MicroBatch], torch.Tensor], batch: MicroBatch) -> torch.Tensor:
        """What `pooled` makes of a batch, a row a text: of shares of it at once if these are large and even enough."""
        shares = even_shares(batch, self.threads)
        if len(shares) == 1:
            return pooled(batch)
        parts = list(self._pool.map(pooled, shares))
        torch.set_num_threads(self.threads)  # a worker's own setting is what a new thread would begin with, too
        result = parts[0].new_empty(len(batch.rows), parts[0].shape[1])
        for share, part in enumerate(parts):
            result[share :: len(parts)] = part
        return result


def even_shares(batch: MicroBatch, workers: int) -> list[MicroBatch]:
    """Deals the texts out in turns, which keeps each share's lengths ascending; the batch itself if that is uneven."""
    if workers == 1 or batch.tokens < workers * SHARE_TOKENS:
        return [batch]
    shares = [MicroBatch(batch.rows[k::workers], batch.token_ids[k::workers]) for k in range(workers)]
    is_even = max(share.tokens for share in shares) <= BALANCE * batch.tokens / workers
    return shares if is_even else [batch]
