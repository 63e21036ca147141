"""The supervisor: starts tritonserver, watches it through the canary, restarts the whole group if it fails.

Triton itself never restarts a dead or hung model process and stays "ready" with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from polyhead.errors import RepositoryError
from polyhead_serving.health import Health, RestartReason

log = logging.getLogger("polyhead_serving.serve")

LONGEST_PAUSE_S = 60.0
GLANCE_S = 0.1  # between two looks at the processes, while a canary is under way too
RETRY_S = 1.0  # between a failed canary and the next


class StartError(Exception):
    """The first start failed: nothing was ever served, so there is nothing to restart."""


class Process(Protocol):
    """What is supervised (`server_process.ServerProcess`)."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        ...

    def start(self) -> None:
        """Starts it anew; raises RepositoryError where there is nothing that it could serve."""
        ...

    def explain_exit(self) -> str:
        """Why it ended."""
        ...

    def dead_model_process(self) -> str | None:
        """What became of a model process that has ended under a server that runs on, or None."""
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
    """When the supervisor acts.

    Attributes:
        startup_timeout_s: how long a start may take.
        probe_interval_s: pause between an answered canary and the next.
        canary_timeout_s: how long a canary is waited for.
        canary_failures: how many in a row lead to a restart.
        first_pause_s: before a restart; it doubles.
    """

    startup_timeout_s: float
    probe_interval_s: float
    canary_timeout_s: float = 5.0
    canary_failures: int = 3
    first_pause_s: float = 1.0


class Failure(NamedTuple):
    """Why the server must be restarted."""

    reason: RestartReason
    wrong: str


def supervise(
    server: Process, canary: Bird, timing: Timing, on_ready: Callable[[], None], health: Health | None = None
) -> None:
    """Serves until interrupted (KeyboardInterrupt leaves through here; the caller stops the server).

    Raises:
        StartError: the first start failed.
    """
    health = health or Health()
    pause_s = timing.first_pause_s
    served = False
    while True:
        try:
            server.start()
            failure = _wait_until_ready(server, canary, timing, health)
        except RepositoryError as error:  # a half-copied version, say: it may be whole the next time
            failure = Failure("exit", str(error))
        if failure is None:
            served = True
            on_ready()
            since = time.monotonic()
            failure = _watch(server, canary, timing, health)
            if time.monotonic() - since > LONGEST_PAUSE_S:
                pause_s = timing.first_pause_s
        elif not served:
            raise StartError(failure.wrong)
        health.restarting(*failure)
        log.error("restarting in %g s: %s", pause_s, failure.wrong)
        server.kill()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _wait_until_ready(server: Process, canary: Bird, timing: Timing, health: Health) -> Failure | None:
    deadline = time.monotonic() + timing.startup_timeout_s
    while True:
        began = time.monotonic()
        wrong = canary.sing(timing.canary_timeout_s)
        # Asked after the canary: another server on our port must not pass for one that has ended.
        if server.exit_code is not None:
            return Failure("exit", server.explain_exit())
        if wrong is None:
            health.canary(None, time.monotonic() - began)
            return None
        if time.monotonic() > deadline:
            return Failure("canary", f"not ready after {timing.startup_timeout_s:g} s: {wrong}")
        time.sleep(0.2)


def _watch(server: Process, canary: Bird, timing: Timing, health: Health) -> Failure:
    failures = 0
    pause_s = timing.probe_interval_s
    while True:
        wake = time.monotonic() + pause_s
        while (left_s := wake - time.monotonic()) > 0:
            if failure := _look(server):
                return failure
            time.sleep(min(GLANCE_S, left_s))
        began = time.monotonic()
        song = _start_singing(canary, timing.canary_timeout_s)
        while wait([song], GLANCE_S).not_done:
            if failure := _look(server):
                return failure
        wrong = song.result()
        health.canary(wrong, time.monotonic() - began)
        failures = 0 if wrong is None else failures + 1
        if wrong is not None:
            log.warning("canary failed (%d of %d): %s", failures, timing.canary_failures, wrong)
            if failures >= timing.canary_failures:
                return _look(server) or Failure("canary", wrong)
        pause_s = timing.probe_interval_s if wrong is None else min(RETRY_S, timing.probe_interval_s)


def _look(server: Process) -> Failure | None:
    # What the processes show is noticed at once; the canary alone would take several intervals.
    if server.exit_code is not None:
        return Failure("exit", server.explain_exit())
    if dead := server.dead_model_process():
        return Failure("model_process", dead)
    return None


def _start_singing(canary: Bird, timeout_s: float) -> Future[str | None]:
    """In a thread of its own, which ends with the canary's timeout: a hung server must not hold up the looks."""
    song: Future[str | None] = Future()

    def sing() -> None:
        try:
            song.set_result(canary.sing(timeout_s))
        except BaseException as error:
            song.set_exception(error)

    threading.Thread(target=sing, daemon=True).start()
    return song
