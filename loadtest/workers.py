"""Counts on their way from workers to their master, to the last request.

Locust itself waits half a second for its workers' last reports, and what is under way then is lost from the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from loadtest.run import Run
from loadtest.tally import Tally

FINISH, FINISHED = "polyhead_finish", "polyhead_finished"
KEY = "polyhead"
SLACK_S = 10.0  # beyond what requests under way may take


def connect_workers(environment: Any, run_of: Callable[[], Run | None]) -> None:
    """Listens on either side; does nothing where all users are in one process.

    Args:
        run_of: gives the process's run, once there is one.
    """
    runner, events = environment.runner, environment.events
    if isinstance(runner, WorkerRunner):
        runner.register_message(FINISH, _finish, concurrent=True)
        events.report_to_master.add_listener(lambda data, **_: _report(run_of(), data))
    elif isinstance(runner, MasterRunner):
        finished: set[str] = set()
        runner.register_message(FINISHED, lambda msg, **_: finished.add(msg.node_id))
        events.worker_report.add_listener(lambda data, **_: _take(run_of(), data))
        events.test_start.add_listener(lambda **_: finished.clear())
        events.test_stopping.add_listener(lambda **_: _wait(environment, finished))


def _report(run: Run | None, data: dict[str, Any]) -> None:
    if run is not None:
        data[KEY] = run.tally.drain()


def _take(run: Run | None, data: dict[str, Any]) -> None:
    if run is not None and KEY in data:
        run.tally.merge(Tally.from_message(data[KEY]))


def _finish(environment: Any, **_: Any) -> None:
    """On a worker: ends its users, reports all that is left, and says so."""
    runner = environment.runner
    runner.stop()
    data: dict[str, Any] = {}
    environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
    runner.send_message("stats", data)
    runner.send_message(FINISHED)


def _wait(environment: Any, finished: set[str]) -> None:
    """On the master, before it stops: until all workers that run have reported, or one has been silent too long."""
    clients = environment.runner.clients
    environment.runner.send_message(FINISH)
    deadline = time.monotonic() + environment.stop_timeout + SLACK_S
    while time.monotonic() < deadline:
        if {client.id for client in (*clients.spawning, *clients.running)} <= finished:
            return
        gevent.sleep(0.05)
