"""The engine: checks token sequences, cuts them into micro-batches, and computes their logits on a CPU or a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.checkpoint import Checkpoint
from polyhead.engine.cpu.forward import BetweenLayers, CPUForward
from polyhead.engine.micro_batch import micro_batches
from polyhead.engine.token_ids import checked, distinct_texts
from polyhead.precision import Precision, check_precision

if TYPE_CHECKING:
    from polyhead.engine.cuda.forward import CUDAForward


class Engine:
    """Computes logits. Several threads may call it; they take turns.

    Args:
        checkpoint: the model.
        device: ``cpu`` or a CUDA device.
        precision: of the linear layers, one of `PRECISIONS`; the head is always computed in float32.
        token_budget: the most tokens computed at once, which bounds memory; None takes the device's default.

    Raises:
        CheckpointError: the engine does not know the activation function.
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
        self._turn = threading.RLock()  # again in one thread: by a text that passes between the layers of others

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a text's logits are the same bits alone and in any batch.

        If not, they are the same up to the precision's rounding. See docs/decisions/0017-batch-invariance.md.
        """
        return isinstance(self.forward, CPUForward) and self.forward.is_batch_invariant

    def logits(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of each token sequence.

        Args:
            token_ids: non-empty sequences of at most ``n_positions`` ids; ids below ``vocab_size``.

        Returns:
            float32 ``(len(token_ids), num_labels)`` in the order given.

        Raises:
            TokenIdsError: names the sequence that cannot be computed, and what is allowed.
        """
        texts = checked(token_ids, self.body)
        distinct, places = distinct_texts(texts)
        logits = np.empty((len(distinct), self.width), dtype=np.float32)
        with self._turn, torch.inference_mode():
            # A GPU works through its queue while the next micro-batch is packed; only reading waits for it.
            parts = [
                (batch, self.forward.logits(batch))
                for batch in micro_batches(distinct, self.token_budget, self.forward.enough_tokens)
            ]
            for batch, part in parts:
                logits[batch.rows] = part.cpu().numpy()
        return logits[places] if len(distinct) < len(texts) else logits

    def set_between_layers(self, between_layers: BetweenLayers) -> None:
        """On a CPU, calls this between the layers of a micro-batch; a GPU computes without a stop."""
        if isinstance(self.forward, CPUForward):
            self.forward.between_layers = between_layers

    @property
    def computed_layers(self) -> int:
        """How many layers were computed so far, on a CPU: it grows within a long micro-batch."""
        return self.forward.computed_layers if isinstance(self.forward, CPUForward) else 0


def _forward(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> CPUForward | CUDAForward:
    if device.type == "cpu":
        return CPUForward(checkpoint, precision)
    from polyhead.engine.cuda.forward import CUDAForward  # it imports parts of torch that a CPU server does not need

    return CUDAForward(checkpoint, device, precision)
