"""A head class of a user's own, as a checkpoint may name it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TwoLayerHead(nn.Module):
    """Takes what the architecture gives it: one hidden state or several."""

    def __init__(self, config: Any, width: int, layer2concat: int = 1) -> None:
        super().__init__()
        self.inner = nn.Linear(layer2concat * config.n_embd, width)
        self.outer = nn.Linear(width, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.outer(torch.relu(self.inner(pooled)))


def not_a_module(**_: Any) -> None:
    """What a checkpoint must not get called."""
    raise AssertionError("a checkpoint ran a function")
