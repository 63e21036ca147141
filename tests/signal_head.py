"""A linear head that sends its own process a signal in a chosen training step, so that tests can kill it there."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn


class SignalHead(nn.Module):
    """Sends the signal that ``POLYHEAD_TEST_SIGNAL`` names as ``number@forward``; counts only training forwards."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(config.n_embd, config.num_labels)
        self.forwards = 0

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits."""
        if self.training and torch.is_grad_enabled():
            self.forwards += 1
            number, _, at = os.environ.get("POLYHEAD_TEST_SIGNAL", "0@0").partition("@")
            if self.forwards == int(at):
                os.kill(os.getpid(), int(number))
        return self.linear(pooled)
