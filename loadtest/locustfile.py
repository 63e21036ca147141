"""The load test's connection to Locust: its users, its shape, and what happens at the start and end of a run.

docs/loadtest.md says how to use it; the command is ``python -m locust -f loadtest/locustfile.py`` in the repository's
root. Exit codes: 0 the objectives are met; 1 one is missed, or the run was cut short; 2 the run cannot be made (a bad
file or option, no server, or another model), which is found before any user starts.
"""

from __future__ import annotations

import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import gevent
from locust import LoadTestShape, events
from locust.runners import MasterRunner, WorkerRunner

from loadtest import CannotRunError
from loadtest.options import add_options
from loadtest.run import LoadRun, prepare_run
from loadtest.server_metrics import scrape
from loadtest.summary import print_summary, summarize, write_summary
from loadtest.tally import Tally
from loadtest.users import CLASSES, GrpcClassifier, HttpClassifier
from polyhead_client import PolyheadClientError

__all__ = ["GrpcClassifier", "HttpClassifier", "LoadShape"]  # Locust looks for users and a shape here

SPAWN_RATE = 100.0  # users per second; Locust warns above that
# Messages between a master and its workers.
FINISH, FINISHED, TALLY = "polyhead_finish", "polyhead_finished", "polyhead"
SLACK_S = 10.0  # how long the master waits for workers beyond the time that requests in progress may take


class LoadShape(LoadTestShape):
    """The shape that ``--shape`` names; ``-u`` is its highest number of users and ``-t`` its length."""

    use_common_options = True

    def reset_time(self) -> None:
        """Plans the run. Locust calls this before the first tick of each run."""
        super().reset_time()  # type: ignore[no-untyped-call]  # Locust's
        run_of(self.runner).plan()

    def tick(self) -> tuple[int, float] | None:
        """The number of users now; None when the run is over."""
        users = run_of(self.runner).users_at(self.get_run_time())  # type: ignore[no-untyped-call]  # Locust's
        return None if users is None else (users, SPAWN_RATE)


def run_of(runner: Any) -> LoadRun:
    """The run that `prepare` or `begin` has put into Locust's environment."""
    run: LoadRun = runner.environment.run
    return run


def prepare(environment: Any, **_: Any) -> None:
    """Checks that the run can be made. A worker checks in `begin`, when its master has sent it the options."""
    options = environment.parsed_options
    environment.run = None
    environment.user_classes = [CLASSES[options.protocol]]
    connect_workers(environment)
    if isinstance(environment.runner, WorkerRunner):
        return
    if not options.golden:
        refuse("--golden PATH is required: the golden.jsonl of the served checkpoint, or a file of polyhead-golden")
    if not environment.host:
        refuse("--host is required, such as http://127.0.0.1:8000")
    if "://" not in environment.host:
        environment.host = f"http://{environment.host}"
    environment.run = prepare_or_refuse(environment)
    print(f"loadtest: {environment.run.tolerance}", file=sys.stderr, flush=True)
    # The run's end waits for requests in progress, so that a request that hangs is counted as an error.
    environment.stop_timeout = max(environment.stop_timeout or 0.0, options.request_timeout_s + 1)


def begin(environment: Any, **_: Any) -> None:
    """Starts counting from zero; the web page can start one run after another."""
    if isinstance(environment.runner, WorkerRunner):
        environment.user_classes = [CLASSES[environment.parsed_options.protocol]]
        environment.run = prepare_or_refuse(environment)
    run = environment.run
    run.begin()
    if not isinstance(environment.runner, WorkerRunner):
        # Locust itself handles SIGTERM only after a headless run, and a greenlet may swallow the KeyboardInterrupt.
        for number in (signal.SIGTERM, signal.SIGINT) if run.options.headless else (signal.SIGTERM,):
            gevent.signal_handler(number, lambda: setattr(run, "stopped", True))
    if run.options.metrics_url and not isinstance(environment.runner, WorkerRunner):
        run.before, run.after = scrape(run.options.metrics_url), None


def end(environment: Any, **_: Any) -> None:
    """Reads the server's metrics again. If the server is gone, the run's errors say so."""
    run = environment.run
    if run is not None:
        run.ended = time.time()
    if run is not None and run.before is not None and not isinstance(environment.runner, WorkerRunner):
        try:
            run.after = scrape(run.options.metrics_url)
        except CannotRunError as error:
            print(f"loadtest: {error}", file=sys.stderr)


def conclude(environment: Any, **_: Any) -> None:
    """Writes the summary, and prints it last; a worker leaves that to its master."""
    runner, run = environment.runner, environment.run
    if run is None or isinstance(runner, WorkerRunner):
        return
    runner.stop()  # after Ctrl-C, users still run
    if not run.started:
        return  # a web page on which nobody started a run
    broken_users = sum(entry["count"] for entry in runner.exceptions.values())
    summary = summarize(run, broken_users)
    environment.process_exit_code = summary.exit_code
    listen(events.quit, lambda **_: print_summary(summary))  # after Locust's own tables
    if run.options.summary:
        try:
            write_summary(summary, Path(run.options.summary))
        except OSError as error:
            print(f"loadtest: {run.options.summary}: cannot be written ({error.strerror})", file=sys.stderr)
            environment.process_exit_code = 1


def prepare_or_refuse(environment: Any) -> LoadRun:
    """Prepares the run, or ends the process."""
    try:
        return prepare_run(environment.host, environment.parsed_options)
    except (CannotRunError, PolyheadClientError) as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Ends the process before any user starts."""
    print(f"loadtest: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def connect_workers(environment: Any) -> None:
    """Sends counts from workers to their master, up to the last request.

    Locust itself waits half a second for its workers' last reports, and loses the requests that take longer.
    """
    runner, hooks = environment.runner, environment.events
    if isinstance(runner, WorkerRunner):
        runner.register_message(FINISH, _finish_worker, concurrent=True)
        listen(hooks.report_to_master, partial(_report, environment))
    elif isinstance(runner, MasterRunner):
        started: set[str] = set()
        finished: set[str] = set()
        runner.register_message(FINISHED, lambda msg, **_: finished.add(msg.node_id))
        listen(hooks.worker_report, partial(_merge_report, environment))
        listen(hooks.test_start, lambda **_: _note_workers(environment, started, finished))
        listen(hooks.test_stopping, lambda **_: _wait_for_workers(environment, started, finished))


def _report(environment: Any, data: dict[str, Any], **_: Any) -> None:
    if environment.run is not None:  # a worker reports before its first run, too
        data[TALLY] = environment.run.tally.drain()


def _merge_report(environment: Any, data: dict[str, Any], **_: Any) -> None:
    if TALLY in data:
        environment.run.tally.merge(Tally.from_message(data[TALLY]))


def _finish_worker(environment: Any, **_: Any) -> None:
    """On a worker: ends the users, reports all remaining counts, and says that it has finished."""
    runner = environment.runner
    runner.stop()
    data: dict[str, Any] = {}
    environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
    runner.send_message("stats", data)
    runner.send_message(FINISHED)


def _note_workers(environment: Any, started: set[str], finished: set[str]) -> None:
    """On the master, before a run: these workers begin it."""
    finished.clear()
    started.clear()
    started.update(client.id for client in environment.runner.clients.ready)


def _wait_for_workers(environment: Any, started: set[str], finished: set[str]) -> None:
    """On the master, before it stops: waits until all running workers have reported, or until one takes too long."""
    clients = environment.runner.clients
    environment.runner.send_message(FINISH)
    deadline = time.monotonic() + environment.stop_timeout + SLACK_S
    while time.monotonic() < deadline:
        if {client.id for client in (*clients.spawning, *clients.running)} <= finished:
            break
        gevent.sleep(0.05)
    environment.run.lost_workers = len(started - finished)


def listen(hook: Any, listener: Any) -> None:
    """Adds a listener to one of Locust's event hooks, which carry no types."""
    hook.add_listener(listener)


listen(events.init_command_line_parser, add_options)
listen(events.init, prepare)
listen(events.test_start, begin)
listen(events.test_stop, end)
listen(events.quitting, conclude)
