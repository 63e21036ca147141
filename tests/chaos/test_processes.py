"""Processes that die, hang or are told to end. Two replicas, one client: the other one answers meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.harm import serve, server_pid, survive
from tests.chaos.load import VerifiedLoad, through_client
from tests.chaos.plain import ask

pytestmark = pytest.mark.chaos

SEGFAULT = """

import ctypes as _ctypes

_execute = TritonPythonModel.execute


def _execute_or_crash(self, requests):
    if any(b"crash" in text for request in requests for text in read(request).texts):
        _ctypes.string_at(0)
    return _execute(self, requests)


TritonPythonModel.execute = _execute_or_crash
"""


def test_model_process_killed(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A SIGKILL of the model process, as the kernel's when memory is out, loses no request and heals by itself."""
    with serve(repository) as harmed, serve(sound) as healthy:
        (victim,) = harmed.model_processes()
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGKILL))
        record("model process killed", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_model_process_stopped(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A model process that hangs is replaced before the client's deadline ends a request that waits for it."""
    with serve(repository) as harmed, serve(sound) as healthy:
        (victim,) = harmed.model_processes()
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGSTOP))
        record("model process stopped", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_model_process_segfaults(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A model process that dies of a segmentation fault in the midst of a batch loses none of the batch's requests."""
    model = repository / "gpt2_classifier" / "1" / "model.py"
    model.write_text(model.read_text(encoding="utf-8") + SEGFAULT, encoding="utf-8")
    with serve(repository) as harmed, serve(sound) as healthy:
        load, recovery_s = survive(harmed, healthy, corpus, lambda: ask(harmed.url("http"), ["crash"]))
        record("model process segfaults", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_server_killed(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A tritonserver that dies loses no request; it comes back, and its orphans go with it."""
    with serve(repository) as harmed, serve(sound) as healthy:
        victim = server_pid(harmed)
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGKILL))
        record("tritonserver killed", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_sigterm_under_load(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A replica that is told to end answers what it has accepted; the client goes to the other one for the rest."""
    with serve(repository) as ending, serve(sound) as staying:
        with (
            through_client(ending.url("http"), staying.url("http")) as client,
            VerifiedLoad(client.scores, corpus, threads=12, pause_s=0.0) as load,
        ):
            load.wait_for(200)
            began = time.monotonic()
            code = ending.end(signal.SIGTERM)
            took_s = time.monotonic() - began
            load.wait_for(200)
        assert code == 0
        record("SIGTERM under load, two replicas", load.count, exit_s=round(took_s, 1))
