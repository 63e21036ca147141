"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): a step replaces the momentum of a matrix by the nearest
orthogonal one.

`torch.optim.Muon` always computes that in bf16. Processors without bf16 products emulate them, twenty times slower than
fp32. Where products are quick in bf16, the steps here have the same bits as torch's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial of degree 5, Newton-Schulz
ITERATIONS = 5
LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, whose steps are as long as AdamW's (Liu et al. 2025, arXiv:2502.16982).

    So both can have one learning rate and one weight decay. GPT-2's matrices are (in, out), which changes nothing: the
    orthogonalized transpose is the transposed orthogonalized matrix, and the length of a step depends on the longer
    side only.

    Args:
        matrices: a group of parameters with two dimensions.
    """

    def __init__(self, matrices: Iterable[Tensor] | list[dict[str, object]], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the Trainer has no closure
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step(matrix, matrix.grad, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, matrix: Tensor, gradient: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalized(gradient.lerp(average, momentum), precision_of(matrix.device))
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(update, alpha=-lr * 0.2 * max(matrix.shape) ** 0.5)


def precision_of(device: torch.device) -> torch.dtype:
    """bf16 where it is quicker than fp32."""
    is_quick = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if is_quick else torch.float32


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly the orthogonal matrix that is nearest to the given one, computed in `dtype`.

    Its singular values are between about 0.7 and 1.2 instead of 1, which trains as well (torch.optim.Muon).
    """
    found = matrix.to(dtype)
    is_tall = matrix.shape[0] > matrix.shape[1]
    if is_tall:
        found = found.T
    found = found / found.norm().clamp(min=LEAST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = found @ found.T
        found = torch.addmm(found, torch.addmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found.T if is_tall else found
