"""How many threads torch uses in a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many in this block; other tests use one."""
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(1)
