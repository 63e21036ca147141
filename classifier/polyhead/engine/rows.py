"""How many rows a matrix product has at least, so that no row's result depends on how many others there are.

Libraries take other kernels for a few rows, which sum in another order (docs/decisions/0017-batch-invariance.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

LEAST_ROWS = 16


def at_least(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix, with rows of zeros below it if it has fewer than `LEAST_ROWS`."""
    missing = LEAST_ROWS - len(matrix)
    return F.pad(matrix, (0, 0, 0, missing)) if missing > 0 else matrix
