"""One server over a tiny checkpoint, for all tests of deploy/ that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from tests.e2e.processes import ONE_THREAD


@pytest.fixture(scope="session")
def served(base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server that is ready."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    export_checkpoint(base_checkpoint, repository)
    with LocalServer(repository, environment=ONE_THREAD) as running:
        yield running
