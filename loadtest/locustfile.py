"""Users that send golden texts as fast as they are answered and compare every answer.

Run from the repository's root: ``python -m locust -f loadtest/locustfile.py --headless -u 8 -r 8 -t 20s
--host http://localhost:8000 --golden PATH --summary FILE``. Exit codes: 0 everything was answered rightly,
1 a failure or a mismatch, 2 a bad golden file or no server, before any user starts.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from locust import User, constant, events, task
from locust.runners import WorkerRunner

from loadtest.golden import GoldenError, GoldenRow, read_golden, read_heads
from loadtest.options import add_options
from loadtest.summary import REQUEST_NAME, Mismatch, format_summary, summarize, write_summary
from loadtest.verify import find_mismatches
from polyhead_client import Client, PolyheadClientError, Prediction, RetryPolicy, Schema

MOST_NAMED = 3  # mismatches in one message


@dataclass(frozen=True, slots=True)
class Expected:
    """What all users share; `users` numbers them, so that each draws its own texts."""

    rows: list[GoldenRow]
    schema: Schema
    users: Any


events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    """Reads what is expected and proves that the server can be asked for it."""
    options = environment.parsed_options
    if not options.golden:
        refuse("--golden PATH is required: the golden.jsonl of the served checkpoint")
    if not environment.host:
        refuse("--host is required, such as http://localhost:8000")
    try:
        rows = read_golden(Path(options.golden))
        with Client(environment.host, options.model, timeout_s=options.request_timeout_s) as client:
            schema = client.schema()
        heads = read_heads(Path(options.golden).parent / "config.json")
    except (GoldenError, PolyheadClientError) as error:
        refuse(str(error))
    if schema.width != len(rows[0].scores):
        refuse(
            f"{options.golden}: has {len(rows[0].scores)} scores a text, the served model {schema.width}; "
            "is it the golden.jsonl of the served checkpoint?"
        )
    if heads is not None and heads != schema.heads:
        refuse(f"{options.golden}: the served model's heads differ from those in config.json beside it")
    environment.expected = Expected(rows, schema, count())
    # Requests under way when the time is up are waited for: one that hangs must end as an error, not vanish.
    environment.stop_timeout = max(environment.stop_timeout or 0.0, options.request_timeout_s + 1)


@events.quitting.add_listener
def conclude(environment: Any, **_: Any) -> None:
    """Writes and prints the summary; a worker leaves that to its master."""
    runner = environment.runner
    if not hasattr(environment, "expected") or isinstance(runner, WorkerRunner):
        return
    options = environment.parsed_options
    broken = sum(entry["count"] for entry in runner.exceptions.values())
    summary = summarize(runner.stats, options.texts_per_request, broken)
    environment.process_exit_code = summary.exit_code
    print(format_summary(summary), flush=True)
    if options.summary:
        try:
            write_summary(summary, Path(options.summary))
        except OSError as error:
            print(f"loadtest: {options.summary}: cannot be written ({error.strerror})", file=sys.stderr)
            environment.process_exit_code = 1


class Classifier(User):
    """Asks without pause, over one connection of its own."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Opens the connection and seeds the draw."""
        options = self.environment.parsed_options
        self.expected: Expected = self.environment.expected
        self.client = Client(
            self.environment.host, options.model, timeout_s=options.request_timeout_s, retry=RetryPolicy(max_attempts=1)
        )  # a failure that a retry would hide is what a load test looks for
        self.random = random.Random(f"{options.seed} {next(self.expected.users)}")

    def on_stop(self) -> None:
        """Closes the connection, which would keep the server from exiting."""
        self.client.close()

    @task
    def classify(self) -> None:
        """Sends one request, times it, and then compares its answers."""
        options = self.environment.parsed_options
        rows = self.random.choices(self.expected.rows, k=options.texts_per_request)
        answers: list[bytes] = []
        exception: Exception | None = None
        started = time.perf_counter()
        try:
            answers = self.client.classify_json([row.text for row in rows])
            predictions = [Prediction.from_json(answer) for answer in answers]
        except PolyheadClientError as error:
            exception = error
        elapsed_ms = 1000 * (time.perf_counter() - started)
        if exception is None:
            exception = self.compare(predictions, rows, options.tolerance)
        self.environment.events.request.fire(
            request_type="POST",
            name=REQUEST_NAME,
            response_time=elapsed_ms,
            response_length=sum(len(answer) for answer in answers),
            exception=exception,
            context={},
        )

    def compare(self, predictions: list[Prediction], rows: list[GoldenRow], tolerance: float) -> Mismatch | None:
        """The first few mismatches as one exception, or None."""
        found = [
            f"golden line {row.line}: {mismatch}"
            for prediction, row in zip(predictions, rows, strict=True)
            for mismatch in find_mismatches(prediction, row, self.expected.schema, tolerance)
        ]
        if not found:
            return None
        more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        return Mismatch("; ".join(found[:MOST_NAMED]) + more)


def refuse(message: str) -> NoReturn:
    """Ends the process before any user starts."""
    print(f"loadtest: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
