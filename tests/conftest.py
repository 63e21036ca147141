"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.build_hook import compile_stand_in
from tests.tiny import write_tiny_checkpoint

TESTS = Path(__file__).parent
# Folders and files whose tests start a server: they run one after the other.
ALONE = [TESTS / name for name in (
    "benchmarks/test_benchmarks.py", "benchmarks/test_client_benchmark.py", "benchmarks/test_engine_benchmark.py",
    "benchmarks/test_serving.py", "benchmarks/test_tail.py", "chaos", "deploy", "docs", "e2e",
    "loadtest/test_capacity.py", "loadtest/test_locustfile.py", "scoring/test_cluster.py",
)]  # fmt: skip
# Those that train, install or start many processes.
SLOW = [*ALONE, *(TESTS / name for name in (
    "benchmarks/test_gpu_check.py", "benchmarks/test_quality.py", "client/test_client_install.py",
    "scoring/test_killed.py", "serving/test_placed_kills.py",
    "training/test_distributed.py", "training/test_evaluate.py",
    "training/test_fit_arguments.py", "training/test_fit_body.py", "training/test_fit_layers.py",
    "training/test_full_disk.py", "training/test_held_out_report.py", "training/test_long_texts.py",
    "training/test_measured_rows.py", "training/test_report_layout.py", "training/test_resume.py",
    "training/test_run.py", "training/test_shown_progress.py", "training/test_train.py",
))]  # fmt: skip

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by where they stand."""
    assert all(place.exists() for place in SLOW), [place for place in SLOW if not place.exists()]
    for item in items:
        if any(item.path.is_relative_to(place) for place in SLOW):
            item.add_marker(pytest.mark.slow)
        if any(item.path.is_relative_to(place) for place in ALONE):
            item.add_marker(pytest.mark.alone)


def pytest_runtest_setup() -> None:
    """A test draws the same random tensors in every run and in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def amx_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for AMX, compiled with plain C in place of the tile instructions."""
    return compile_stand_in(tmp_path_factory.mktemp("amx"))
