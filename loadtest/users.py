"""Users that send golden texts and compare every answer: one kind a protocol.

A closed user asks again when it has its answer. An open one (``--shape open``) is a source of arrivals: each request
starts when it is due, in a greenlet of its own, and its latency counts from then.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from locust import FastHttpUser, User, task

from loadtest.arrivals import PoissonArrivals
from loadtest.golden import GoldenRow
from loadtest.options import sizes_of
from loadtest.owners import find_owner
from loadtest.run import Run, connect
from loadtest.tally import Outcome
from loadtest.verify import find_mismatches
from polyhead_client import PolyheadClientError, Prediction, RequestTimeoutError
from polyhead_client.errors import mapped
from polyhead_client.operations import take_output
from polyhead_client.request import HttpReply, decode, encode, infer_call

CONNECTIONS = 256  # of an open user at a time; whoever is due beyond waits for one, and that counts
MOST_NAMED = 3  # mismatches in one message


class MismatchError(Exception):
    """The server answered, but not as expected."""


class ForeignAnswerError(MismatchError):
    """The server gave the answer to another text."""


class Classifier(User):
    """What both protocols share."""

    abstract = True

    def on_start(self) -> None:
        """Seeds the draw of texts and, if open, the arrivals."""
        self.shared: Run = self.environment.run
        options = self.shared.options
        self.sizes = sizes_of(options.texts_per_request)
        worker = getattr(self.environment.runner, "worker_index", 0)
        self.random = random.Random(f"{options.seed} {worker} {next(self.shared.users)}")
        self.under_way = Group()
        self.connections = BoundedSemaphore(CONNECTIONS)
        self.arrivals: PoissonArrivals | None = None
        if options.shape == "open":
            requests_s = options.rate / (sum(self.sizes) / len(self.sizes)) / options.sources
            self.arrivals = PoissonArrivals(requests_s, time.perf_counter(), self.random)

    def on_stop(self) -> None:
        """Waits for what is under way, then closes the connections, which would keep the server from exiting."""
        if not self.under_way.join(timeout=self.shared.options.request_timeout_s + 1):
            for greenlet in list(self.under_way):
                rows, due = greenlet.args
                self.conclude(rows, due, Outcome.TIMEOUT, RequestTimeoutError("no answer when the run had ended"))
            self.under_way.kill()
        self.close()

    def wait_time(self) -> float:
        """Until the next arrival, or not at all."""
        return max(self.arrivals.due - time.perf_counter(), 0.0) if self.arrivals else 0.0

    @task
    def classify(self) -> None:
        """Asks, or starts the requests that are due."""
        if self.arrivals is None:
            self.ask(self.draw(), time.perf_counter())
            return
        for due in self.arrivals.take(time.perf_counter()):
            self.under_way.spawn(self.ask, self.draw(), due).link_exception(self.report_broken)

    def report_broken(self, greenlet: Any) -> None:
        """Tells locust of a defect in a greenlet of ours, which would else only be printed."""
        _, exception, traceback = greenlet.exc_info
        self.environment.events.user_error.fire(user_instance=self, exception=exception, tb=traceback)

    def draw(self) -> list[GoldenRow]:
        """The texts of one request."""
        return self.random.choices(self.shared.rows, k=self.random.choice(self.sizes))

    def ask(self, rows: Sequence[GoldenRow], due: float) -> None:
        """One request that should have started at `due`, from there to its verdict."""
        if self.arrivals is not None:
            self.shared.tally.lateness.add(1000 * (time.perf_counter() - due))
        predictions: list[Prediction] = []
        error: Exception | None = None
        size = 0
        patience_s = self.shared.options.request_timeout_s
        try:
            if not self.connections.acquire(timeout=max(due + patience_s - time.perf_counter(), 0)):
                raise RequestTimeoutError(f"waited {patience_s:g} s for one of {CONNECTIONS} connections")
            try:
                answers = self.send([row.text for row in rows], max(due + patience_s - time.perf_counter(), 0.001))
            finally:
                self.connections.release()
            size = sum(map(len, answers))
            predictions = [Prediction.from_json(answer) for answer in answers]
        except PolyheadClientError as failed:
            error = failed
        ended = time.perf_counter()
        outcome = Outcome.TIMEOUT if isinstance(error, RequestTimeoutError) else Outcome.REFUSED
        if error is None:
            outcome, error = self.judge(predictions, rows)
        self.conclude(rows, due, outcome, error, ended, size)

    def conclude(
        self,
        rows: Sequence[GoldenRow],
        due: float,
        outcome: Outcome,
        error: Exception | None,
        ended: float | None = None,
        size: int = 0,
    ) -> None:
        """Counts a request's end, for this package's summary and for locust's pages."""
        now = time.perf_counter()
        ended = now if ended is None else ended
        latency_ms = 1000 * (ended - due)
        tokens = sum(row.token_count for row in rows)
        self.shared.tally.add(outcome, len(rows), tokens, latency_ms, time.time() - (now - ended))
        self.environment.events.request.fire(
            request_type=self.shared.options.protocol,
            name=f"classify {len(rows)} {'text' if len(rows) == 1 else 'texts'}",
            response_time=latency_ms,
            response_length=size,
            exception=error,
            context={},
        )

    def judge(
        self, predictions: Sequence[Prediction], rows: Sequence[GoldenRow]
    ) -> tuple[Outcome, MismatchError | None]:
        """Whether all answers of a request are right, and if not the first few reasons as one exception."""
        run = self.shared
        found: list[str] = []
        foreign = False
        for prediction, row in zip(predictions, rows, strict=True):
            mismatches = find_mismatches(prediction, row, run.schema, run.options.tolerance)
            if not mismatches:
                continue
            owner = find_owner(prediction, row, run.rows, run.schema, run.options.tolerance)
            if owner is not None:
                foreign = True
                mismatches = [f"is the answer to the text of golden line {owner.line}"]
            found += [f"golden line {row.line}: {mismatch}" for mismatch in mismatches]
        if not found:
            return Outcome.RIGHT, None
        more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        message = "; ".join(found[:MOST_NAMED]) + more
        if foreign:
            return Outcome.FOREIGN, ForeignAnswerError(message)
        return Outcome.MISMATCH, MismatchError(message)

    def send(self, texts: Sequence[str], patience_s: float) -> list[bytes]:
        """One request: the server's JSON, one a text.

        Raises:
            PolyheadClientError: there is no whole answer.
        """
        raise NotImplementedError

    def close(self) -> None:
        """No request follows."""
        raise NotImplementedError


class GrpcClassifier(Classifier):
    """Asks through `polyhead_client`, whose gRPC knows of gevent; one channel a user."""

    def on_start(self) -> None:
        """Opens the channel."""
        super().on_start()
        self.triton = connect(self.environment.host, self.shared.options)

    def send(self, texts: Sequence[str], patience_s: float) -> list[bytes]:
        """See `Classifier.send`."""
        return self.triton.classify_json(texts, timeout_s=patience_s)

    def close(self) -> None:
        """See `Classifier.close`."""
        self.triton.close()


class HttpClassifier(Classifier, FastHttpUser):
    """Asks over locust's fast HTTP client, in `polyhead_client`'s own encoding: three quarters of its CPU time."""

    max_retries = 0
    insecure = False  # certificates are checked; SSL_CERT_FILE names an authority of one's own

    def __init__(self, environment: Any) -> None:
        options = environment.run.options
        self.network_timeout = self.connection_timeout = options.request_timeout_s
        self.concurrency = CONNECTIONS if options.shape == "open" else 1
        self.default_headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        super().__init__(environment)

    def send(self, texts: Sequence[str], patience_s: float) -> list[bytes]:
        """See `Classifier.send`."""
        model = self.shared.options.model
        call = infer_call(model, [text.encode() for text in texts], "PREDICTION")
        request = encode(call, {}, patience_s)
        with mapped(model=model, replica=self.environment.host, protocol="http", timeout_s=patience_s):
            # Not entered as a context, the response is not counted by locust: `conclude` does that.
            response = self.client.post(
                request.path, data=request.body, headers=dict(request.headers), catch_response=True
            )
            if response.status_code == 0:
                raise _failure(response)
            headers = {name.lower(): value for name, value in response.headers.items()}
            result = decode(call, HttpReply(response.status_code, headers, bytes(response.content)))
            column = take_output(result, "PREDICTION", len(texts), 1)
        return [bytes(answer) for answer in column[:, 0]]

    def close(self) -> None:
        """See `Classifier.close`."""
        self.client.client.close()


def _failure(response: Any) -> Exception:
    """What kept an answer from coming, as a kind that `mapped` knows."""
    error = response.request_meta["exception"]
    error = getattr(error, "original", None) or error  # how geventhttpclient wraps a timeout
    if isinstance(error, OSError):
        return error
    return ConnectionError(f"{type(error).__name__}: {error}")


CLASSES: dict[str, type[Classifier]] = {"http": HttpClassifier, "grpc": GrpcClassifier}
