"""The supervisor, with a server and a canary that follow a script."""

from __future__ import annotations

import pytest

from polyhead.supervisor import StartError, Timing, supervise

QUICK = Timing(startup_timeout_s=5, probe_interval_s=0.01, first_pause_s=0.01)


class ScriptedServer:
    """Counts what is done to it; ends by itself when the canary says so."""

    def __init__(self) -> None:
        self.starts = 0
        self.kills = 0
        self.exit_code: int | None = None

    def start(self) -> None:
        """Counts, and runs again."""
        self.starts += 1
        self.exit_code = None

    def explain_exit(self) -> str:
        """A fixed reason."""
        return "it ended"

    def kill(self) -> None:
        """Counts."""
        self.kills += 1


class ScriptedCanary:
    """Gives the next answer of a script at each call: None, a reason, "exit" for a dead server; at its end, Ctrl-C."""

    def __init__(self, server: ScriptedServer, *script: str | None) -> None:
        self.server = server
        self.script = list(script)

    def sing(self, timeout_s: float) -> str | None:
        """The script's next answer."""
        if not self.script:
            raise KeyboardInterrupt
        answer = self.script.pop(0)
        if answer == "exit":
            self.server.exit_code = -11
        return answer


def run(*script: str | None) -> tuple[ScriptedServer, int]:
    """Supervises through a script; gives the server and how often it became ready."""
    server, ready = ScriptedServer(), []
    with pytest.raises(KeyboardInterrupt):
        supervise(server, ScriptedCanary(server, *script), QUICK, lambda: ready.append(1))
    return server, len(ready)


def test_three_failures_in_a_row_restart() -> None:
    """Two failures are forgiven by an answer; the third in a row kills the group and starts anew."""
    server, ready = run(None, "bad", "bad", None, "bad", "bad", "bad", None)
    assert (server.starts, server.kills, ready) == (2, 1, 2)


def test_exit_restarts() -> None:
    """A server that ends by itself is cleaned up and started again."""
    server, ready = run(None, "exit", None)
    assert (server.starts, server.kills, ready) == (2, 1, 2)


def test_first_start_that_fails_is_final() -> None:
    """A server that ends before it was ever ready is not tried again; the reason is its own."""
    server = ScriptedServer()
    with pytest.raises(StartError, match="it ended"):
        supervise(server, ScriptedCanary(server, "refused", "exit"), QUICK, lambda: None)
    assert server.starts == 1


def test_start_has_a_time_limit() -> None:
    """A server that never answers is given up with what the canary last said."""
    server = ScriptedServer()
    timing = Timing(startup_timeout_s=0.1, probe_interval_s=0.01)
    with pytest.raises(StartError, match=r"not ready after 0.1 s: refused"):
        supervise(server, ScriptedCanary(server, *["refused"] * 100), timing, lambda: None)


def test_later_start_that_fails_is_tried_again() -> None:
    """Once it has served, a start that fails leads to the next one."""
    server, ready = run(None, "exit", "exit", None)
    assert (server.starts, ready) == (3, 2)
