"""The supervisor: starts tritonserver, watches its processes and its canary, and restarts the whole group if it fails.

Triton never restarts a dead or hung model process by itself.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NamedTuple

from polyhead.errors import RepositoryError
from polyhead_serving.health import Health, RestartReason
from polyhead_serving.server_process import ServerProcess
from polyhead_serving.triton import ServeOptions

log = logging.getLogger("polyhead_serving")

RESTART_DELAY_S, MAX_RESTART_DELAY_S = 1.0, 60.0  # pause before a restart; it doubles with each restart in a row
PROCESS_CHECK_INTERVAL_S = 0.1  # also while a canary is waited for
CANARY_RETRY_S = 1.0  # between a failed canary and the next
# A start fails if processes, files or memory are used up, or if a version is half copied. The next one may succeed.
START_ERRORS = (RepositoryError, OSError, MemoryError, RuntimeError, subprocess.SubprocessError)

Check = Callable[[float], str | None]  # one canary with a timeout in seconds: None, or what is wrong


class StartError(Exception):
    """The first start failed. Nothing was served yet, so there is no point in a restart."""


class ServerFailure(NamedTuple):
    """Why the server must be restarted."""

    reason: RestartReason
    wrong: str


def supervise(
    server: ServerProcess, check: Check, options: ServeOptions, on_ready: Callable[[], None], health: Health
) -> None:
    """Keeps the server running until KeyboardInterrupt, which it does not catch; the caller then stops the server.

    Raises:
        StartError: the first start failed.
    """
    delay_s = RESTART_DELAY_S
    served = False
    while True:
        try:
            server.start()
            failure = _wait_until_ready(server, check, options, health)
        except START_ERRORS as error:
            failure = ServerFailure("exit", str(error) or type(error).__name__)
        if failure is None:
            served = True
            on_ready()
            since = time.monotonic()
            failure = _watch(server, check, options, health)
            if time.monotonic() - since > MAX_RESTART_DELAY_S:
                delay_s = RESTART_DELAY_S
        elif not served:
            raise StartError(failure.wrong)
        health.restarting(*failure)
        log.error("restarting in %g s: %s", delay_s, failure.wrong)
        server.kill()
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, MAX_RESTART_DELAY_S)


def _wait_until_ready(
    server: ServerProcess, check: Check, options: ServeOptions, health: Health
) -> ServerFailure | None:
    deadline = time.monotonic() + options.startup_timeout_s
    while True:
        began = time.monotonic()
        wrong = check(options.canary_timeout_s)
        # Checked after the canary: if our server has ended, another one on its port may have answered.
        if server.exit_code is not None:
            return ServerFailure("exit", server.explain_exit())
        if wrong is None:
            health.canary(None, time.monotonic() - began)
            return None
        if time.monotonic() > deadline:
            return ServerFailure("canary", f"not ready after {options.startup_timeout_s:g} s: {wrong}")
        time.sleep(0.2)


def _watch(server: ServerProcess, check: Check, options: ServeOptions, health: Health) -> ServerFailure:
    failures = 0
    pause_s = options.probe_interval_s
    while True:
        wake = time.monotonic() + pause_s
        while (left_s := wake - time.monotonic()) > 0:
            if failure := _dead_process(server):
                return failure
            time.sleep(min(PROCESS_CHECK_INTERVAL_S, left_s))
        began = time.monotonic()
        answer = _check_in_thread(check, options.canary_timeout_s)
        while wait([answer], PROCESS_CHECK_INTERVAL_S).not_done:
            if failure := _dead_process(server):
                return failure
        wrong = answer.result()
        health.canary(wrong, time.monotonic() - began)
        failures = 0 if wrong is None else failures + 1
        if wrong is not None:
            log.warning("canary failed (%d of %d): %s", failures, options.canary_failures, wrong)
            if failures >= options.canary_failures:
                return _dead_process(server) or ServerFailure("canary", wrong)
        pause_s = options.probe_interval_s if wrong is None else min(CANARY_RETRY_S, options.probe_interval_s)


def _dead_process(server: ServerProcess) -> ServerFailure | None:
    # This finds a death much sooner than the canary, which needs several failures in a row.
    if server.exit_code is not None:
        return ServerFailure("exit", server.explain_exit())
    if dead := server.dead_model_process():
        return ServerFailure("model_process", dead)
    return None


def _check_in_thread(check: Check, timeout_s: float) -> Future[str | None]:
    """Runs one canary in its own thread, so that a hung server does not stop the supervisor from watching processes."""
    answer: Future[str | None] = Future()

    def run() -> None:
        try:
            answer.set_result(check(timeout_s))
        except BaseException as error:
            answer.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:  # no more threads
        answer.set_result(f"not asked: {error}")
    return answer
