"""The product among its peers: the engine at the precision that it picks, and at each other one that it can run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.peers.peer import Logits, PeerMissingError
from polyhead.checkpoint import Checkpoint
from polyhead.engine import Engine, Precision, fastest_precision
from polyhead.errors import OptionError


class ProductPeer:
    """The engine, which cuts and sorts its batches itself.

    Args:
        precision: one of the engine's; if None, the one that is fastest here.

    Raises:
        PeerMissingError: the device has no instructions for this precision.
    """

    batch_size: int | None = None

    def __init__(self, name: str, checkpoint: Checkpoint, device: str, precision: Precision | None = None) -> None:
        self.name = name
        chosen = precision or fastest_precision(torch.device(device))
        if device == "cpu" and chosen == "bf16" != fastest_precision(torch.device("cpu")):
            raise PeerMissingError("this CPU has no bf16 instructions")  # the same answers, many times slower
        try:
            self._engine = Engine(checkpoint, device, chosen)
        except OptionError as error:
            raise PeerMissingError(str(error)) from error
        self.precision: str = chosen

    def logits(self, token_ids: Sequence[Sequence[int]]) -> Logits:
        """Logits in the order given."""
        return self._engine.logits(token_ids)

    def warm_up(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Runs a third of the texts."""
        self._engine.logits(token_ids[::3])
