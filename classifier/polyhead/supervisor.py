"""The supervisor: starts tritonserver, watches it through the canary, restarts the whole group if it fails.

Triton itself never restarts a dead or hung model process and stays "ready" with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger("polyhead.serve")

CANARY_TIMEOUT_S = 10.0
FAILURES_ALLOWED = 3
LONGEST_PAUSE_S = 60.0


class StartError(Exception):
    """The first start failed: nothing was ever served, so there is nothing to restart."""


class Process(Protocol):
    """What is supervised (`server_process.ServerProcess`)."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        ...

    def start(self) -> None:
        """Starts it anew."""
        ...

    def explain_exit(self) -> str:
        """Why it ended."""
        ...

    def kill(self) -> None:
        """Ends it with everything that belongs to it."""
        ...


class Bird(Protocol):
    """What tells whether it answers (`canary.Canary`): None, or what is wrong."""

    def sing(self, timeout_s: float) -> str | None:
        """Asks once."""
        ...


@dataclass(frozen=True)
class Timing:
    """How long a start may take, how often the canary sings, the first pause before a restart (it doubles)."""

    startup_timeout_s: float
    probe_interval_s: float
    first_pause_s: float = 1.0


def supervise(server: Process, canary: Bird, timing: Timing, on_ready: Callable[[], None]) -> None:
    """Serves until interrupted (KeyboardInterrupt leaves through here; the caller stops the server).

    Raises:
        StartError: the first start failed.
    """
    pause_s = timing.first_pause_s
    served = False
    while True:
        server.start()
        wrong = _wait_until_ready(server, canary, timing)
        if wrong is None:
            served = True
            on_ready()
            since = time.monotonic()
            wrong = _watch(server, canary, timing)
            if time.monotonic() - since > LONGEST_PAUSE_S:
                pause_s = timing.first_pause_s
        elif not served:
            raise StartError(wrong)
        log.error("restarting in %g s: %s", pause_s, wrong)
        server.kill()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _wait_until_ready(server: Process, canary: Bird, timing: Timing) -> str | None:
    deadline = time.monotonic() + timing.startup_timeout_s
    while True:
        wrong = canary.sing(CANARY_TIMEOUT_S)
        # Asked after the canary: another server on our port must not pass for one that has ended.
        if server.exit_code is not None:
            return server.explain_exit()
        if wrong is None:
            return None
        if time.monotonic() > deadline:
            return f"not ready after {timing.startup_timeout_s:g} s: {wrong}"
        time.sleep(0.2)


def _watch(server: Process, canary: Bird, timing: Timing) -> str:
    failures = 0
    while True:
        # Short naps notice an exit at once; the canary alone would take several intervals.
        wake = time.monotonic() + timing.probe_interval_s
        while time.monotonic() < wake:
            if server.exit_code is not None:
                return server.explain_exit()
            time.sleep(min(0.5, timing.probe_interval_s))
        wrong = canary.sing(CANARY_TIMEOUT_S)
        failures = 0 if wrong is None else failures + 1
        if wrong is not None:
            log.warning("canary failed (%d of %d): %s", failures, FAILURES_ALLOWED, wrong)
            if failures >= FAILURES_ALLOWED:
                return wrong
