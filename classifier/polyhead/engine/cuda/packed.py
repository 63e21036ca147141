"""Packed texts on a GPU, and the forward pass recorded as CUDA graphs for a few shapes of them.

A forward pass reads a micro-batch from one int32 tensor, so that one copy takes it to the GPU. The tensor may have room
for more tokens and texts than there are. Spare tokens are token 0 at position 0 and belong to no text; spare texts
have no tokens. A graph makes a small batch one launch instead of 120.

All graphs read the same input tensor and share one memory pool, so a replay may overwrite another graph's output. The
output is copied in the same stream before anything else is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

from polyhead.engine.micro_batch import MicroBatch

logger = logging.getLogger(__name__)

# Token counts of the graphs: four per doubling, so that at most a quarter is computed for nothing, from 256 tokens on.
# Fewer take as long as 256, because reading the weights decides. Larger batches take longer to compute than to launch,
# so a graph saves nothing.
TOKENS = (64, 128, 192, 256, *(step * 2**power for power in range(6, 11) for step in (5, 6, 7, 8)))
LEAST_TEXTS = 128  # that a shape has room for, if it has as many tokens: else many tiny texts would take a large shape
SPARE_TOKENS = 2048  # by estimate, computing more of them takes longer than launching kernel by kernel
SHORT = 256  # attention launches blocks for the longest text that a graph allows; most batches have none longer


class PackedShape(NamedTuple):
    """Room for how many tokens and texts, and the most tokens that a text may have."""

    tokens: int
    texts: int
    longest: int

    @classmethod
    def of(cls, batch: MicroBatch) -> PackedShape:
        """The shape that fits the batch exactly."""
        return cls(sum(batch.lengths), len(batch.lengths), batch.lengths[-1])

    def holds(self, other: PackedShape) -> bool:
        """Whether a batch of the other shape fits into this one."""
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
        positions: (tokens,) each token's position in its text.
        last: (texts,) the row of each text's last token.
        query_starts: (texts + 1,) cumulative lengths if each text has one row, for its last token.
        starts: (texts + 1,) cumulative lengths if each text has a row per token.
    """

    shape: PackedShape
    ids: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor
    query_starts: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def view(cls, buffer: torch.Tensor, shape: PackedShape) -> Packed:
        """Cuts the first ``sum(shape.sizes)`` numbers of a tensor into the fields."""
        return cls(shape, *torch.split(buffer[: sum(shape.sizes)], shape.sizes))


def pack(batch: MicroBatch, shape: PackedShape, *, pinned: bool) -> torch.Tensor:
    """Writes a micro-batch to a fresh int32 tensor on the host.

    Pinned memory is safe to drop while a copy from it is queued: PyTorch's allocator reuses the block only after that
    copy.
    """
    buffer = torch.zeros(sum(shape.sizes), dtype=torch.int32, pin_memory=pinned)
    packed = Packed.view(buffer, shape)
    lengths = np.array(batch.lengths)
    ends = lengths.cumsum()
    tokens, texts = int(ends[-1]), len(lengths)
    packed.ids.numpy()[:tokens] = np.concatenate(batch.token_ids)
    packed.positions.numpy()[:tokens] = np.arange(tokens) - np.repeat(ends - lengths, lengths)
    packed.last.numpy()[:texts] = ends - 1
    packed.query_starts.numpy()[:] = np.minimum(np.arange(shape.texts + 1), texts)
    packed.starts.numpy()[1:] = tokens
    packed.starts.numpy()[1 : texts + 1] = ends
    return buffer


# Queues the recorded pass again on the current content of its input; the result, valid once the device has finished.
Recording = tuple[Callable[[], object], torch.Tensor]
Record = Callable[[Callable[[], torch.Tensor]], Recording]


def graph_shapes(max_length: int) -> list[PackedShape]:
    """The shapes to record for texts of at most `max_length` tokens, ascending."""
    shapes = {
        PackedShape(tokens, max(min(tokens, LEAST_TEXTS), tokens // 32), min(longest, tokens, max_length))
        for tokens in TOKENS
        for longest in (SHORT, max_length)
    }
    return sorted(shapes)


def cuda_recorder(device: torch.device) -> Record:
    """A function that records forward passes on a GPU; all recordings share one memory pool.

    It raises RuntimeError if a step of the pass cannot be recorded, or if memory is short.
    """
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def record(run: Callable[[], torch.Tensor]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        # The outer context restores the caller's stream; torch.cuda.graph does not after a failure.
        with torch.cuda.device(device), torch.cuda.stream(stream):
            run()  # because libraries initialise in their first call and must not do so while recorded
            # thread_local, because another model's thread may allocate memory at the same time.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                output = run()
        return graph.replay, output

    return record


class Graphs:
    """Forward passes recorded for some shapes; a batch goes to the smallest shape that holds it."""

    def __init__(
        self, shapes: list[PackedShape], forward: Callable[[Packed], torch.Tensor], record: Record, device: torch.device
    ) -> None:
        self.device = device
        self.input = torch.zeros(max(sum(shape.sizes) for shape in shapes), dtype=torch.int32, device=device)
        self.recordings: dict[PackedShape, Recording] = {}
        self._lock = Lock()
        for shape in reversed(shapes):  # the largest first, so that the others reuse its memory from the pool
            packed = Packed.view(self.input, shape)
            try:
                self.recordings[shape] = record(partial(forward, packed))
            except RuntimeError as error:
                # All of them: a failed recording may free the workspace that the others use (torch 2.13).
                self.recordings.clear()
                logger.warning("no CUDA graphs: batches launch kernel by kernel, because %s failed: %s", shape, error)
                break
        self.shapes = sorted(self.recordings)

    def shape_for(self, batch: MicroBatch) -> PackedShape | None:
        """The smallest recorded shape that holds a batch; None if there is none, or it has too much room."""
        wanted = PackedShape.of(batch)
        shape = next((shape for shape in self.shapes if shape.holds(wanted)), None)
        return shape if shape and shape.tokens - wanted.tokens <= SPARE_TOKENS else None

    def run(self, batch: MicroBatch, shape: PackedShape) -> torch.Tensor:
        """Queues the forward pass of a batch.

        Returns:
            The forward pass's result for the batch's texts, in memory that no later call overwrites.
        """
        host = pack(batch, shape, pinned=self.device.type == "cuda")
        replay, output = self.recordings[shape]
        with self._lock:  # input and output are shared, so copy, replay and copy must be queued in one go
            self.input[: len(host)].copy_(host, non_blocking=True)
            replay()
            return output[: len(batch.lengths)].clone()
