"""A user's own head class, which a checkpoint may name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TwoLayerHead(nn.Module):
    """Two layers over one hidden state or several, as the architecture gives them."""

    def __init__(self, config: Any, width: int, layer2concat: int = 1) -> None:
        super().__init__()
        self.inner = nn.Linear(layer2concat * config.n_embd, width)
        self.outer = nn.Linear(width, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.outer(torch.relu(self.inner(pooled)))


class ComputingHead(nn.Module):
    """A head that reads a number from a tensor when it is made, which is impossible on the device ``meta``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale = float(torch.ones(3).sum())
        self.linear = nn.Linear(config.n_embd, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.linear(pooled) * self.scale


def not_a_module(**_: Any) -> None:
    """A function that no checkpoint must be able to call."""
    raise AssertionError("a checkpoint ran a function")
