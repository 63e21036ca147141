"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint

# Hardware decides else: on CPUs with bf16 instructions answers would be rounded, and many tests compare them closely.
os.environ["POLYHEAD_PRECISION"] = "fp32"
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it computes


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the base architecture; not to be changed."""
    path = tmp_path_factory.mktemp("base") / "checkpoint"
    write_tiny_checkpoint(path)
    return path


@pytest.fixture
def damaged(base_checkpoint: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes copies of the tiny checkpoint for a test to damage."""
    return lambda: Path(shutil.copytree(base_checkpoint, tmp_path / "damaged"))
