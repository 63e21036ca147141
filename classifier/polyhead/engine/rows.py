"""How many rows matrix products have, so that no row's result depends on how many others there are.

Libraries take other kernels for a few rows, and for what is left over when rows are dealt out to threads; these sum in
another order (docs/decisions/0017-batch-invariance.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

LEAST_ROWS = 16
MULTIPLE = 8


def filled_up(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix, with rows of zeros below it up to a multiple of `MULTIPLE` and at least to `LEAST_ROWS`."""
    rows = max(LEAST_ROWS, -(-len(matrix) // MULTIPLE) * MULTIPLE)
    return F.pad(matrix, (0, 0, 0, rows - len(matrix))) if rows > len(matrix) else matrix
