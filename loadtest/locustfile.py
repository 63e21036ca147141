"""The load test as locust runs it; docs/loadtest.md says how to use it.

``python -m locust -f loadtest/locustfile.py --headless --host http://localhost:8000 --golden PATH -u 8 -t 20s`` from
the repository's root. Exit codes: 0 the objectives are met, 1 one is missed, 2 it was asked wrongly: a bad file or
option, or no such server, found before any user starts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

from locust import events
from locust.runners import WorkerRunner

from loadtest.golden import GoldenError
from loadtest.objectives import ObjectivesError
from loadtest.options import add_options
from loadtest.run import MismatchedModelError, Run, prepare_run
from loadtest.server_metrics import MetricsError, scrape
from loadtest.shapes import Shape
from loadtest.summary import summarize, write_summary
from loadtest.tables import print_summary
from loadtest.users import CLASSES, GrpcClassifier, HttpClassifier
from loadtest.workers import connect_workers
from polyhead_client import PolyheadClientError

__all__ = ["GrpcClassifier", "HttpClassifier", "Shape"]  # what locust looks for here

WRONGLY_ASKED = (GoldenError, ObjectivesError, MetricsError, MismatchedModelError, PolyheadClientError)

events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    """Proves that the run can be made; a worker does so when its master has told it the options."""
    options = environment.parsed_options
    environment.run = None
    environment.user_classes = [CLASSES[options.protocol]]
    connect_workers(environment, lambda: environment.run)
    if isinstance(environment.runner, WorkerRunner):
        return
    if not options.golden:
        refuse("--golden PATH is required: the golden.jsonl of the served checkpoint, or a file of polyhead-golden")
    if not environment.host:
        refuse("--host is required, such as http://localhost:8000")
    if "://" not in environment.host:
        environment.host = f"http://{environment.host}"
    environment.run = prepare_or_refuse(environment)
    # Requests under way when the time is up are waited for: one that hangs must end as an error, not vanish.
    environment.stop_timeout = max(environment.stop_timeout or 0.0, options.request_timeout_s + 1)


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Starts from nothing; the web page can begin one run after the other."""
    if isinstance(environment.runner, WorkerRunner):
        environment.user_classes = [CLASSES[environment.parsed_options.protocol]]
        environment.run = prepare_or_refuse(environment)
    run = environment.run
    run.begin()
    if run.options.metrics_url and not isinstance(environment.runner, WorkerRunner):
        run.before, run.after = scrape(run.options.metrics_url), None


@events.test_stop.add_listener
def end(environment: Any, **_: Any) -> None:
    """Reads the server's metrics again; a server that is gone by then has the errors to show for it."""
    run = environment.run
    if run is not None and run.before is not None and not isinstance(environment.runner, WorkerRunner):
        try:
            run.after = scrape(run.options.metrics_url)
        except MetricsError as error:
            print(f"loadtest: {error}", file=sys.stderr)


@events.quitting.add_listener
def conclude(environment: Any, **_: Any) -> None:
    """Draws the summary, writes it, and lets it be printed last; a worker leaves that to its master."""
    runner, run = environment.runner, environment.run
    if run is None or isinstance(runner, WorkerRunner):
        return
    runner.stop()  # after Ctrl-C, users still ask
    if not run.started:
        return  # a web page on which nobody began a run
    broken = sum(entry["count"] for entry in runner.exceptions.values())
    summary = summarize(run, broken)
    environment.process_exit_code = summary.exit_code
    events.quit.add_listener(lambda **_: print_summary(summary))  # after locust's own tables
    if run.options.summary:
        try:
            write_summary(summary, Path(run.options.summary))
        except OSError as error:
            print(f"loadtest: {run.options.summary}: cannot be written ({error.strerror})", file=sys.stderr)
            environment.process_exit_code = 1


def prepare_or_refuse(environment: Any) -> Run:
    """The run, or the end of the process."""
    try:
        return prepare_run(environment.host, environment.parsed_options)
    except WRONGLY_ASKED as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Ends the process before any user starts."""
    print(f"loadtest: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
