"""Locust users that send texts and compare every answer with the expected one; one class per protocol.

A closed user sends its next request when it has its answer. An open user (``--shape open``) is a source of arrivals:
each request starts when it is due, in its own greenlet, and its latency counts from that time.

No user hammers a server that is gone. After an error a closed user pauses, and after a refusal it waits as long as the
server says. A source of arrivals pauses only if there is no server; requests that are due meanwhile fail without being
sent, so that none is missing from the figures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from locust import FastHttpUser, User, task

from loadtest.expected import ExpectedAnswer, find_mismatches, find_owner
from loadtest.options import sizes_of
from loadtest.outages import BackOff, is_gone
from loadtest.phases import PoissonArrivals
from loadtest.run import CONNECTIONS, LoadRun, connect
from loadtest.tally import RequestOutcome
from polyhead_client import (
    PolyheadClientError,
    Prediction,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnreachableError,
)
from polyhead_client.errors import mapped
from polyhead_client.operations import take_output
from polyhead_client.request import HttpReply, decode, encode, infer_call

MOST_NAMED = 3  # mismatches in one message


class MismatchError(Exception):
    """The server's answer is not the expected one."""


class Classifier(User):
    """The base class of both protocols' users."""

    abstract = True

    def on_start(self) -> None:
        """Seeds the draw of texts and, for an open user, the arrivals."""
        self.load_run: LoadRun = self.environment.run  # set by the locustfile
        options = self.load_run.options
        self.sizes = sizes_of(options.texts_per_request)
        worker = getattr(self.environment.runner, "worker_index", 0)
        self.random = random.Random(f"{options.seed} {worker} {next(self.load_run.users)}")
        self.under_way = Group()
        self.connections = BoundedSemaphore(CONNECTIONS)
        self.back_off = BackOff()
        self.arrivals: PoissonArrivals | None = None
        if options.shape == "open":
            requests_s = options.rate / (sum(self.sizes) / len(self.sizes)) / options.sources
            self.arrivals = PoissonArrivals(requests_s, time.perf_counter(), self.random)

    def on_stop(self) -> None:
        """Waits for requests in progress, then closes the connections: open ones would keep the server from exiting."""
        if not self.under_way.join(timeout=self.load_run.options.request_timeout_s + 1):
            for greenlet in list(self.under_way):
                rows, due = greenlet.args
                error = RequestTimeoutError("no answer when the run had ended")
                self.conclude(rows, due, RequestOutcome.TIMEOUT, error)
            self.under_way.kill()
        self.close()

    def wait_time(self) -> float:
        """Seconds until the next arrival, or until a closed user's pause is over."""
        due = self.arrivals.due if self.arrivals else self.back_off.until
        return max(due - time.perf_counter(), 0.0)

    @task
    def classify(self) -> None:
        """Sends one request; an open user starts all requests that are due."""
        if self.arrivals is None:
            self.ask(self.draw(), time.perf_counter())
            return
        for due in self.arrivals.take(time.perf_counter()):
            if due < self.back_off.until:
                error = ServerUnreachableError("not sent, because the server had just been gone")
                self.conclude(self.draw(), due, RequestOutcome.FAILED, error)
                continue
            self.under_way.spawn(self.ask, self.draw(), due).link_exception(self.report_broken)

    def report_broken(self, greenlet: Any) -> None:
        """Reports an exception in one of our greenlets to Locust; gevent alone would only print it."""
        _, exception, traceback = greenlet.exc_info
        self.environment.events.user_error.fire(user_instance=self, exception=exception, tb=traceback)

    def draw(self) -> list[ExpectedAnswer]:
        """The texts of one request."""
        return self.random.choices(self.load_run.expected, k=self.random.choice(self.sizes))

    def ask(self, rows: Sequence[ExpectedAnswer], due: float) -> None:
        """Sends one request that was due at `due`, and judges its answers."""
        if self.arrivals is not None:
            self.load_run.tally.lateness.add(1000 * (time.perf_counter() - due))
        patience_s = self.load_run.options.request_timeout_s
        try:
            if not self.connections.acquire(timeout=max(due + patience_s - time.perf_counter(), 0)):
                raise RequestTimeoutError(f"waited {patience_s:g} s for one of {CONNECTIONS} connections")
            try:
                answers = self.send([row.text for row in rows], max(due + patience_s - time.perf_counter(), 0.001))
            finally:
                self.connections.release()
            predictions = [Prediction.from_json(answer) for answer in answers]
        except RequestTimeoutError as error:
            self.conclude(rows, due, RequestOutcome.TIMEOUT, error)
        except ServerOverloadedError as error:
            self.load_run.tally.outages.answered(time.time())
            if self.arrivals is None:
                self.back_off.failed(time.perf_counter(), error.retry_after_s)
            self.conclude(rows, due, RequestOutcome.REFUSED, error)
        except PolyheadClientError as error:
            if gone := is_gone(error):
                self.load_run.tally.outages.lost(time.time())
            if gone or self.arrivals is None:
                self.back_off.failed(time.perf_counter())
            self.conclude(rows, due, RequestOutcome.FAILED, error)
        else:
            ended = time.perf_counter()
            self.back_off.answered()
            self.load_run.tally.outages.answered(time.time())
            self.conclude(rows, due, *self.judge(predictions, rows), ended, sum(map(len, answers)))

    def conclude(
        self,
        rows: Sequence[ExpectedAnswer],
        due: float,
        outcome: RequestOutcome,
        error: Exception | None,
        ended: float | None = None,
        size: int = 0,
    ) -> None:
        """Counts a request that has ended, for our summary and for Locust's pages."""
        now = time.perf_counter()
        ended = now if ended is None else ended
        latency_ms = 1000 * (ended - due)
        tokens = sum(row.token_count for row in rows)
        self.load_run.tally.add(outcome, len(rows), tokens, latency_ms, time.time() - (now - ended))
        self.environment.events.request.fire(
            request_type=self.load_run.options.protocol,
            name=f"classify {len(rows)} {'text' if len(rows) == 1 else 'texts'}",
            response_time=latency_ms,
            response_length=size,
            exception=error,
            context={},
        )

    def judge(
        self, predictions: Sequence[Prediction], rows: Sequence[ExpectedAnswer]
    ) -> tuple[RequestOutcome, MismatchError | None]:
        """How a request ended by its answers; if one is wrong, also an exception with the first few reasons."""
        run = self.load_run
        found: list[str] = []
        foreign = False
        for prediction, row in zip(predictions, rows, strict=True):
            mismatches = find_mismatches(prediction, row, run.schema, run.options.tolerance)
            if not mismatches:
                continue
            owner = find_owner(prediction, row, run.expected, run.schema, run.options.tolerance)
            if owner is not None:
                foreign = True
                mismatches = [f"is the answer to the text of golden line {owner.line}"]
            found += [f"golden line {row.line}: {mismatch}" for mismatch in mismatches]
        if not found:
            return RequestOutcome.RIGHT, None
        more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        outcome = RequestOutcome.FOREIGN if foreign else RequestOutcome.MISMATCH
        return outcome, MismatchError("; ".join(found[:MOST_NAMED] + more))

    def send(self, texts: list[str], patience_s: float) -> list[bytes]:
        """Sends one request and returns the server's JSON, one per text.

        Raises:
            PolyheadClientError: there is no complete answer.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Closes the connections."""
        raise NotImplementedError


class GrpcClassifier(Classifier):
    """Sends through `polyhead_client`, which makes gRPC work with gevent; one channel per user."""

    def on_start(self) -> None:
        """Opens the channel."""
        super().on_start()
        self.triton = connect(self.environment.host, self.load_run.options)

    def send(self, texts: list[str], patience_s: float) -> list[bytes]:
        """See `Classifier.send`."""
        return self.triton.classify_json(texts, timeout_s=patience_s)

    def close(self) -> None:
        """See `Classifier.close`."""
        self.triton.close()


class HttpClassifier(Classifier, FastHttpUser):
    """Sends `polyhead_client`'s encoding over Locust's fast HTTP client, which takes three quarters of its CPU time."""

    max_retries = 0
    insecure = False  # certificates are checked; SSL_CERT_FILE names another certificate authority

    def __init__(self, environment: Any) -> None:
        options = environment.run.options
        self.network_timeout = self.connection_timeout = options.request_timeout_s
        self.concurrency = CONNECTIONS if options.shape == "open" else 1
        self.default_headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        super().__init__(environment)

    def send(self, texts: list[str], patience_s: float) -> list[bytes]:
        """See `Classifier.send`."""
        model = self.load_run.options.model
        call = infer_call(model, [text.encode() for text in texts], "PREDICTION")
        request = encode(call, {}, patience_s)
        with mapped(model=model, replica=self.environment.host, protocol="http", timeout_s=patience_s):
            # Locust counts a response only if it is entered as a context; here `conclude` reports the request.
            response: Any = self.client.post(
                request.path,
                data=request.body,  # type: ignore[arg-type]  # Locust's type lacks bytes; geventhttpclient sends them
                headers=dict(request.headers),
                catch_response=True,
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
    """The reason why no response came, as an exception that `mapped` knows."""
    error = response.request_meta["exception"]
    error = getattr(error, "original", None) or error  # geventhttpclient wraps a timeout
    if isinstance(error, OSError):
        return error
    return ConnectionError(f"{type(error).__name__}: {error}")


CLASSES: dict[str, type[Classifier]] = {"http": HttpClassifier, "grpc": GrpcClassifier}
