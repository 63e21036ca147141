"""CUDA graphs of the forward pass: a few shapes recorded at load, so that a small batch is one launch, not 120.

All graphs read the same input tensor and share one memory pool. So a replay may write over the output of another graph;
the output is copied in the same stream before anything else is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Protocol

import torch

from polyhead.engine.cuda.packed import Packed, Shape, pack
from polyhead.engine.micro_batch import MicroBatch

logger = logging.getLogger(__name__)

# Above the largest a GPU computes for longer than Python needs to launch, and padding would only cost.
TOKENS = (64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
SHORT = 256  # attention launches blocks for the longest text that a graph allows: most batches have none longer


class Recording(Protocol):
    """A forward pass that can be repeated on what its input tensor then holds."""

    @property
    def output(self) -> torch.Tensor:
        """What the latest pass gave, once the device is through with it."""
        ...

    def replay(self) -> None:
        """Queues the pass again; it writes to `output`."""


Record = Callable[[Callable[[], torch.Tensor]], Recording]


def graph_shapes(max_length: int) -> list[Shape]:
    """The shapes to record for texts of at most `max_length` tokens, in ascending order."""
    shapes = {
        Shape(tokens, max(16, tokens // 32), min(longest, tokens, max_length))
        for tokens in TOKENS
        for longest in (SHORT, max_length)
    }
    return sorted(shapes)


class CUDARecorder:
    """Records on a GPU; what it records shares one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Runs once, since libraries set themselves up in a first call and may not in a recorded one, then records.

        Raises:
            RuntimeError: something in the pass cannot be recorded, or there is no memory.
        """
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        # The outer context gives the caller's stream back, which torch.cuda.graph does not after a failure.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            run()
            # thread_local: another model's thread may allocate memory meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                output = run()
        return _CUDARecording(graph, output)


@dataclass(frozen=True)
class _CUDARecording:
    graph: torch.cuda.CUDAGraph
    output: torch.Tensor

    def replay(self) -> None:
        self.graph.replay()


class Graphs:
    """Forward passes recorded for some shapes; a batch goes to the smallest that holds it."""

    def __init__(
        self, shapes: list[Shape], forward: Callable[[Packed], torch.Tensor], record: Record, device: torch.device
    ) -> None:
        self.device = device
        self.input = torch.zeros(max(sum(shape.sizes) for shape in shapes), dtype=torch.int32, device=device)
        self.recordings: dict[Shape, Recording] = {}
        self._lock = Lock()
        for shape in reversed(shapes):  # the largest first: the others then find their memory in the pool
            packed = Packed.view(self.input, shape)
            try:
                self.recordings[shape] = record(partial(forward, packed))
            except RuntimeError as error:
                logger.warning("no CUDA graph for %s and smaller, batches are launched piecemeal: %s", shape, error)
                break
        self.shapes = sorted(self.recordings)

    def shape_for(self, batch: MicroBatch) -> Shape | None:
        """The smallest recorded shape that holds a batch, or None."""
        wanted = Shape.of(batch)
        return next((shape for shape in self.shapes if shape.holds(wanted)), None)

    def run(self, batch: MicroBatch, shape: Shape) -> torch.Tensor:
        """Queues the forward pass of a batch.

        Returns:
            What the forward pass returns for the batch's texts, in memory of its own.
        """
        host = pack(batch, shape, pinned=self.device.type == "cuda")
        recording = self.recordings[shape]
        with self._lock:  # input and output are shared: copy, replay and copy are queued without another's between them
            self.input[: len(host)].copy_(host, non_blocking=True)
            recording.replay()
            return recording.output[: len(batch.lengths)].clone()
