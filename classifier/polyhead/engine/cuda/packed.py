"""Packed texts: what a forward pass reads of a micro-batch, in one int32 tensor, so that one copy takes it to a GPU.

The tensor may have room for more tokens and texts than there are. Spare tokens are token 0 at position 0 and belong to
no text; spare texts have no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from polyhead.engine.micro_batch import MicroBatch


class Shape(NamedTuple):
    """How many tokens and texts there is room for, and how many tokens the longest text may have."""

    tokens: int
    texts: int
    longest: int

    @classmethod
    def of(cls, batch: MicroBatch) -> Shape:
        """The shape without any room to spare."""
        return cls(sum(batch.lengths), len(batch.lengths), batch.lengths[-1])

    def holds(self, other: Shape) -> bool:
        """Whether what has the other shape has its place here."""
        return all(ours >= theirs for ours, theirs in zip(self, other, strict=True))

    @property
    def sizes(self) -> list[int]:
        """Lengths of the five parts of the int32 tensor, in the order of the fields of ``Packed``."""
        return [self.tokens, self.tokens, self.texts, self.texts + 1, self.texts + 1]


@dataclass(frozen=True)
class Packed:
    """Views of the int32 tensor.

    Attributes:
        ids: (tokens,)
        positions: (tokens,) each token's place in its text.
        last: (texts,) the row of each text's last token.
        query_starts: (texts + 1,) cumulative lengths where each text has one row, its last token's.
        starts: (texts + 1,) cumulative lengths where each text has all its tokens.
    """

    shape: Shape
    ids: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor
    query_starts: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def view(cls, buffer: torch.Tensor, shape: Shape) -> Packed:
        """Cuts the first ``sum(shape.sizes)`` numbers of a tensor into the fields."""
        return cls(shape, *torch.split(buffer[: sum(shape.sizes)], shape.sizes))


def pack(batch: MicroBatch, shape: Shape, *, pinned: bool) -> torch.Tensor:
    """Writes a micro-batch to a fresh int32 tensor on the host.

    Pinned memory is not written again while a copy from it may be under way: PyTorch's allocator hands a block out
    again only after the copies that were queued from it.
    """
    buffer = torch.zeros(sum(shape.sizes), dtype=torch.int32, pin_memory=pinned)
    packed = Packed.view(buffer, shape)
    lengths = np.array(batch.lengths)
    ends = lengths.cumsum()
    tokens, texts = int(ends[-1]), len(lengths)
    packed.ids.numpy()[:tokens] = np.fromiter(chain.from_iterable(batch.token_ids), np.int32, tokens)
    packed.positions.numpy()[:tokens] = np.arange(tokens) - np.repeat(ends - lengths, lengths)
    packed.last.numpy()[:texts] = ends - 1
    packed.query_starts.numpy()[:] = np.minimum(np.arange(shape.texts + 1), texts)
    packed.starts.numpy()[1:] = tokens
    packed.starts.numpy()[1 : texts + 1] = ends
    return buffer
