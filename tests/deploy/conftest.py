"""One server over a tiny checkpoint, for all tests of deploy/ that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from polyhead.schema import Head, Schema
from tests.e2e.processes import ONE_THREAD
from tests.tiny import TEXTS, write_distribution, write_tiny_checkpoint

# Quotes and braces have a meaning in the format of Prometheus, and one label is longer than a bucket's name may be.
LABELS = ("news", 'sport "\\d{1}", x="y"}', "наука " + "и жизнь " * 20)
SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=LABELS, reject_below=0.5),
        Head(name="mood", kind="multi_label", labels=("happy", "sad", "angry", "calm")),
        Head(name="stars", kind="regression"),
    ]
)
KNOWN_TEXTS = [*TEXTS, *["many words " * 100] * 5]  # what the model was validated on


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server that is ready. Its checkpoint knows the distribution of its answers to KNOWN_TEXTS."""
    folder = tmp_path_factory.mktemp("served")
    write_tiny_checkpoint(folder / "checkpoint", schema=SCHEMA)
    write_distribution(folder / "checkpoint", KNOWN_TEXTS * 20)
    export_checkpoint(folder / "checkpoint", folder / "repository")
    with LocalServer(folder / "repository", environment=ONE_THREAD) as running:
        yield running
