"""The supervisor, with a server and a canary that follow a script."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest

from polyhead.errors import RepositoryError
from polyhead_serving import supervisor
from polyhead_serving.health import Health
from polyhead_serving.supervisor import StartError, supervise
from tests.serving.options import parse

QUICK = parse("--startup-timeout-s", "5", "--probe-interval-s", "0.01")


@pytest.fixture(autouse=True)
def _restart_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.01)


class ScriptedServer:
    """Counts what is done to it; ends by itself when the canary says so."""

    def __init__(self) -> None:
        self.starts = 0
        self.kills = 0
        self.exit_code: int | None = None
        self.dead: str | None = None
        self.refusals: list[Exception] = []

    def start(self) -> None:
        """Counts, and runs again; refuses as often as it was told to."""
        if self.starts and self.refusals:
            raise self.refusals.pop()
        self.starts += 1
        self.exit_code = None
        self.dead = None

    def dead_model_process(self) -> str | None:
        """What the script said of a model process."""
        return self.dead

    def explain_exit(self) -> str:
        """A fixed reason."""
        return "it ended"

    def kill(self) -> None:
        """Counts."""
        self.kills += 1


class ScriptedCanary:
    """Gives the script's next answer at each call: None or a reason; after the last one, Ctrl-C.

    "exit" ends the server, "dead" ends a model process, and "hang" ends one while the canary waits for it.
    """

    def __init__(self, server: ScriptedServer, *script: str | None) -> None:
        self.server = server
        self.script = list(script)

    def check(self, timeout_s: float) -> str | None:
        """The script's next answer."""
        if not self.script:
            raise KeyboardInterrupt
        answer = self.script.pop(0)
        if answer == "exit":
            self.server.exit_code = -11
        if answer in ("dead", "hang"):
            self.server.dead = "model process 7 died of SIGSEGV"
        if answer == "hang":
            time.sleep(5)
        return None if answer == "dead" else answer


def run(*script: str | None, health: Health | None = None, refusals: int = 0) -> tuple[ScriptedServer, int]:
    """Supervises through a script; gives the server and how often it became ready."""
    server, ready = ScriptedServer(), []
    server.refusals = [RepositoryError("half a version")] * refusals
    with pytest.raises(KeyboardInterrupt):
        supervise(server, ScriptedCanary(server, *script).check, QUICK, lambda: ready.append(1), health or Health())
    return server, len(ready)


def test_three_failures_in_a_row_restart() -> None:
    """An answer resets the count of failures; the third failure in a row kills the group and starts it again."""
    server, ready = run(None, "bad", "bad", None, "bad", "bad", "bad", None)
    assert (server.starts, server.kills, ready) == (2, 1, 2)


def test_exit_restarts() -> None:
    """A server that ends by itself is cleaned up and started again."""
    server, ready = run(None, "exit", None)
    assert (server.starts, server.kills, ready) == (2, 1, 2)


def test_first_start_that_fails_is_final() -> None:
    """A server that ends before it was ready is not restarted; the error is its own reason."""
    server = ScriptedServer()
    with pytest.raises(StartError, match="it ended"):
        supervise(server, ScriptedCanary(server, "refused", "exit").check, QUICK, lambda: None, Health())
    assert server.starts == 1


def test_start_has_a_time_limit() -> None:
    """A server that never answers fails with the last canary's reason."""
    server = ScriptedServer()
    options = parse("--startup-timeout-s", "0.1", "--probe-interval-s", "0.01")
    with pytest.raises(StartError, match=r"not ready after 0.1 s: refused"):
        supervise(server, ScriptedCanary(server, *["refused"] * 100).check, options, lambda: None, Health())


def test_later_start_that_fails_is_tried_again() -> None:
    """After the server has served, a failed start is repeated."""
    server, ready = run(None, "exit", "exit", None)
    assert (server.starts, ready) == (3, 2)


@pytest.mark.parametrize("how", ["dead", "hang"])
def test_dead_model_process_restarts_at_once(how: str) -> None:
    """A dead model process is noticed before the canary fails, also while a canary hangs."""
    began = time.monotonic()
    server, ready = run(None, how, None)
    assert (server.starts, server.kills, ready) == (2, 1, 2)
    assert time.monotonic() - began < 3


def test_health_counts_what_led_to_restarts() -> None:
    """Restarts are counted by reason, and so are failed canaries of a server that was ready."""
    health = Health()
    run(None, "exit", None, "dead", None, "bad", "bad", "bad", None, health=health)
    metrics = health.metrics()
    for reason in ("exit", "canary", "model_process"):
        assert f'polyhead_restarts_total{{reason="{reason}"}} 1' in metrics
    assert health.not_ready is None


def test_a_repository_that_cannot_be_served_is_tried_again() -> None:
    """A half-copied version delays a restart only until the copy is whole."""
    server, ready = run(None, "exit", None, refusals=2)
    assert (server.starts, ready, server.refusals) == (2, 2, [])


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(11, "Resource temporarily unavailable"),
        OSError(24, "Too many open files"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        subprocess.SubprocessError("Exception occurred in preexec_fn."),
    ],
)
def test_a_machine_that_is_used_up_does_not_end_the_supervisor(error: Exception) -> None:
    """If a restart gets no process, file, memory or thread, it is tried again; nobody else would start the server."""
    server, ready = ScriptedServer(), []
    server.refusals = [error]
    with pytest.raises(KeyboardInterrupt):
        supervise(server, ScriptedCanary(server, None, "exit", None).check, QUICK, lambda: ready.append(1), Health())
    assert (server.starts, len(ready), server.refusals) == (2, 2, [])


def test_a_canary_without_a_thread_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the canary counts as failed; after three, a restart frees what the server uses."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = ScriptedServer()
    canary = ScriptedCanary(server, None)
    ready: list[int] = []

    def announce() -> None:
        ready.append(1)
        monkeypatch.setattr(threading.Thread, "start", refuse)

    with pytest.raises(KeyboardInterrupt):
        supervise(server, canary.check, QUICK, announce, Health())
    assert (server.starts, server.kills, ready) == (2, 1, [1])
