"""A tiny checkpoint in its own repository, and one server for all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from tests.e2e.processes import ONE_THREAD
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository made by polyhead's export."""
    folder = tmp_path_factory.mktemp("e2e")
    write_tiny_checkpoint(folder / "checkpoint", architecture="hidden_state_concat")
    export_checkpoint(folder / "checkpoint", folder / "repository")
    return folder / "repository"


@pytest.fixture(scope="session")
def predictor(repository: Path) -> Predictor:
    """The same checkpoint in this process."""
    return Predictor.load(repository / "gpt2_classifier" / "1" / "checkpoint")


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[LocalServer]:
    """A server that is ready."""
    with LocalServer(repository, environment=ONE_THREAD) as running:
        yield running
