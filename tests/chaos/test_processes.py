"""Processes that die, hang or are told to end. With two replicas, the other one answers meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
import time
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.count import Count
from tests.chaos.harm import serve, server_pid, survive
from tests.chaos.load import TIMEOUT_S, VerifiedLoad, through_client
from tests.chaos.plain import ask, ask_on
from tests.e2e.processes import model_processes, run_name
from tests.other_user import started_as_nobody

pytestmark = pytest.mark.chaos

SEGFAULT = """

import ctypes as _ctypes

_execute = TritonPythonModel.execute


def _execute_or_crash(self, requests):
    for request in requests:
        if b"crash" in pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().flatten().tolist():
            _ctypes.string_at(0)
    return _execute(self, requests)


TritonPythonModel.execute = _execute_or_crash
"""

# The thread that computes ends in the middle of a micro-batch, if a file says so. The file is used up.
THREAD_DEATH = """

import os as _os

_score = Predictor.score


def _score_or_die(self, *arguments, **options):
    try:
        _os.remove({file!r})
    except FileNotFoundError:
        return _score(self, *arguments, **options)
    raise SystemExit("the thread that computes ends")


Predictor.score = _score_or_die
"""


def test_model_process_killed(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A SIGKILL of the model process, as the kernel sends when memory is out, loses no request; the server recovers."""
    with serve(repository) as harmed, serve(sound) as healthy:
        (victim,) = model_processes(harmed)
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGKILL))
        record("model process killed", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_model_process_stopped(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A model process that hangs is replaced before the client's deadline ends a request that waits for it."""
    with serve(repository) as harmed, serve(sound) as healthy:
        (victim,) = model_processes(harmed)
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGSTOP))
        record("model process stopped", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_model_process_segfaults(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """If a model process segfaults in the middle of a batch, none of the batch's other requests is lost."""
    model = repository / "gpt2_classifier" / "1" / "model.py"
    model.write_text(model.read_text(encoding="utf-8") + SEGFAULT, encoding="utf-8")
    with serve(repository) as harmed, serve(sound) as healthy:

        def crash() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):  # its own sender gets a 500, or no answer
                assert ask(harmed.url("http"), ["crash"])[0] == HTTPStatus.INTERNAL_SERVER_ERROR

        load, recovery_s = survive(harmed, healthy, corpus, crash)
        record("model process segfaults", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_scheduler_thread_dies(repository: Path, sound: Path, corpus: Corpus, tmp_path: Path, record: Record) -> None:
    """If the thread that computes dies, the model process ends and is restarted; every request gets one answer."""
    model = repository / "gpt2_classifier" / "1" / "model.py"
    file = tmp_path / "die"
    model.write_text(model.read_text(encoding="utf-8") + THREAD_DEATH.format(file=str(file)), encoding="utf-8")
    with serve(repository) as harmed, serve(sound) as healthy:
        load, recovery_s = survive(harmed, healthy, corpus, file.touch)
        assert not file.exists()
        record("scheduler's thread dies", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


def test_server_killed(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """If tritonserver dies, no request is lost; it is restarted, and its orphans are removed."""
    with serve(repository) as harmed, serve(sound) as healthy:
        victim = server_pid(harmed)
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGKILL))
        record("tritonserver killed", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1))


# Plants what a supervisor may take for its own, and tries to take the servers' ports until a file is there.
OTHER_USER = """
import os, socket, sys
stop, run, *ports = sys.argv[1:]
for name in ("polyhead_lock_polyhead_", f"polyhead_lock_{run}", f"{run}_planted", f".{run}"):
    try:
        with open(f"/dev/shm/{name}", "x") as file:
            file.write(run)
    except FileExistsError:
        pass
print("planted", flush=True)
while not os.path.exists(stop):
    for port in ports:
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taker.bind(("127.0.0.1", int(port)))
                print("took", port, flush=True)
                sys.exit()
            except OSError:
                pass
"""


def test_another_user(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """Another user who plants files and grabs for ports, while tritonserver dies, costs no request."""
    stop = Path("/tmp") / f"polyhead-chaos-stop-{os.getpid()}"
    with serve(repository) as harmed, serve(sound) as healthy:
        victim = server_pid(harmed)
        run = run_name(harmed)
        ports = [str(server.ports[name]) for server in (harmed, healthy) for name in ("http", "grpc", "probe")]
        others = model_processes(healthy)
        try:
            with started_as_nobody(OTHER_USER, str(stop), run, *ports) as user:
                # A third supervisor looks for orphans meanwhile.
                with serve(sound):
                    load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGKILL))
                assert model_processes(healthy) == others
                stop.touch()
                assert user.stdout is not None
                assert user.stdout.read() == ""
        finally:
            for name in ("polyhead_lock_polyhead_", f"{run}_planted", f".{run}"):
                (Path("/dev/shm") / name).unlink(missing_ok=True)
            stop.unlink(missing_ok=True)
    record("another user plants files, grabs for ports", load.count, recovery_s)


def test_sigterm_under_load(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A replica that is told to end answers what it has accepted; the client sends the rest to the other replica."""
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


class PlainCallers:
    """Callers without a client library: some keep a connection, some make one per request; none retries.

    A request counts as accepted when it is sent on a connection that the server accepted. It does not count if the
    connection is refused, or if a kept connection has ended, because HTTP lets a server end an idle connection.

    Attributes:
        count: how the accepted requests ended.
        refused: how many callers were refused at the end.
    """

    def __init__(self, place: str, corpus: Corpus, callers: int = 16) -> None:
        self.count = Count()
        self.refused = 0
        self._lock = threading.Lock()
        self._place, self._corpus = place, corpus
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(callers)]

    def __enter__(self) -> PlainCallers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        draw, keeps = random.Random(number), number % 2 == 0
        connection = http.client.HTTPConnection(self._place, timeout=TIMEOUT_S)
        kept = False
        while True:
            position = draw.randrange(len(self._corpus.texts))
            try:
                if not kept:
                    connection.connect()
            except OSError:
                with self._lock:
                    self.refused += 1
                return
            try:
                status, scores = ask_on(connection, [self._corpus.texts[position]])
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept and isinstance(error, http.client.RemoteDisconnected | ConnectionError):
                    kept = False
                    continue
                self.count.add("lost", repr(error))
                return
            if isinstance(scores, str):
                self.count.add("lost", f"{status} {scores}")
            else:
                self.count.add("answered" if self._corpus.is_right([position], scores) else "wrong", str(scores))
            kept = keeps and connection.sock is not None
            if not kept:
                connection.close()


def test_sigterm_answers_what_was_accepted(repository: Path, corpus: Corpus, record: Record) -> None:
    """A single server that is told to end answers every request that it has accepted and refuses the rest."""
    with serve(repository) as served, PlainCallers(served.url("http"), corpus) as callers:
        time.sleep(5)
        before, began = callers.count.answered, time.monotonic()
        code = served.end(signal.SIGTERM)
        took_s = time.monotonic() - began
    assert code == 0
    assert before > 100
    assert callers.refused == 16
    record("SIGTERM, a single server", callers.count, exit_s=round(took_s, 1))
