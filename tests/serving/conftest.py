"""A repository with a tiny checkpoint, and the model that serves it in the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead.export import export_checkpoint
from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.served_model import start
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="package")
def served_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that serves a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("served")
    write_tiny_checkpoint(folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "repository")
    return folder / "repository"


@pytest.fixture
def model(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model; `execute` waits for all answers."""
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    served = start(served_repository, monkeypatch, at_once_s="60")
    yield served
    served.finalize()
