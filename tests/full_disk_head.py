"""A head that lets files grow no more, from a training step on: as on a full disk, but for every file system."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from polyhead.heads import ConcatHeadSimple


class FullDiskHead(ConcatHeadSimple):
    """Limits files to POLYHEAD_TEST_BYTES from the training step POLYHEAD_TEST_STEP on."""

    steps = 0

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Counts steps."""
        if self.training:
            self.steps += 1
            if self.steps == int(os.environ.get("POLYHEAD_TEST_STEP", "-1")):
                _limit(int(os.environ["POLYHEAD_TEST_BYTES"]))
        return super().forward(pooled)


@contextmanager
def limited(size: int | None = None) -> Iterator[None]:
    """Files of more than `size` bytes cannot be written in this block; limits that are set in it end with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if size is not None:
            _limit(size)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
