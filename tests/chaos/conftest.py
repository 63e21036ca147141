"""Checkpoints, repositories and the answers that they must give; the record of each fault."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import pytest

from polyhead.export import export_checkpoint
from tests.chaos.corpus import Corpus, make_texts
from tests.chaos.count import Count
from tests.chaos.report import RECORDS, Fault, write_record
from tests.tiny import write_tiny_checkpoint


class Record(Protocol):
    """Keeps the counts of the requests during a fault."""

    def __call__(self, name: str, count: Count, recovery_s: float | None = None, **notes: Any) -> None:
        """Fails if a request was lost or answered wrongly, or if none was answered."""


@pytest.fixture
def record() -> Record:
    """Keeps the record for the table, if there is to be one."""

    def keep(name: str, count: Count, recovery_s: float | None = None, **notes: Any) -> None:
        fault = Fault.of(name, count, recovery_s, notes)
        if RECORDS in os.environ:
            write_record(fault, Path(os.environ[RECORDS]))
        assert count.answered > 0, f"nothing was answered: {count}"
        assert count.requests == count.answered + count.shed + count.lost + count.wrong
        assert (count.lost, count.wrong) == (0, 0), f"{count.numbers()}\n" + "\n".join(count.examples)

    return keep


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint that all servers start with."""
    path = tmp_path_factory.mktemp("chaos") / "checkpoint"
    write_tiny_checkpoint(path, architecture="hidden_state_concat")
    return path


@pytest.fixture(scope="session")
def corpus(checkpoint: Path) -> Corpus:
    """Texts and that checkpoint's scores."""
    return Corpus.of(checkpoint, make_texts(300, longest=20))


@pytest.fixture
def repository(checkpoint: Path, tmp_path: Path) -> Path:
    """A fresh repository with that checkpoint, for a test to damage."""
    export_checkpoint(checkpoint, tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture(scope="session")
def sound(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with that checkpoint that no test changes: the other replica's."""
    folder = tmp_path_factory.mktemp("sound") / "repository"
    export_checkpoint(checkpoint, folder)
    return folder
