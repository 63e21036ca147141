"""The product among its peers: the engine at the precision that it picks, and at each other one that it can run."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.peer import Logits, PeerMissingError
from polyhead.checkpoint import Checkpoint
from polyhead.engine import GPT2Engine as Engine
from polyhead.errors import PolyheadError


class ProductPeer:
    """The engine, which cuts and sorts its batches itself.

    Args:
        precision: ``auto``, or one that the engine is told.

    Raises:
        PeerMissingError: the engine does not run this precision here.
    """

    batch_size: int | None = None

    def __init__(self, name: str, checkpoint: Checkpoint, device: str, precision: str = "auto") -> None:
        self.name = name
        options = {} if precision == "auto" else {"precision": precision}
        try:
            self._engine = Engine(checkpoint, device, **options)
        except (PolyheadError, TypeError) as error:  # TypeError: an engine that knows no precisions
            raise PeerMissingError(str(error)) from error
        self.precision: str = getattr(self._engine, "precision", "fp32")

    def logits(self, token_ids: Sequence[Sequence[int]]) -> Logits:
        """Logits in the order given."""
        return self._engine.logits(token_ids)

    def warm_up(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Runs a third of the texts."""
        self._engine.logits(token_ids[::3])
