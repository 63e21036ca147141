"""One server over a tiny checkpoint, for all tests of deploy/ that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.export import export_checkpoint
from tests.e2e.served import Served


@pytest.fixture(scope="session")
def served(base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that is ready."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    export_checkpoint(base_checkpoint, repository)
    with Served(repository) as running:
        yield running
