"""The scheduler: one thread that computes the texts of many requests, micro-batch by micro-batch, and admits requests.

A request is submitted once and finished exactly once, with its scores or with a failure. If the thread itself dies, the
process must end, because nobody would compute what is queued (docs/decisions/0018-own-queue.md).
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from polyhead.decode import Scores
from polyhead.encode import EncodedText
from polyhead.errors import PolyheadError
from polyhead.predictor import Predictor
from polyhead.text_queue import ScoreRequest, TextQueue, WaitingText, requests_of

PATIENCE = 2  # a text waits at most this many times as long as in order of arrival; `TextQueue` keeps this
RATE_MEMORY = 0.8  # weight of the past in the measured tokens per second
LEAST_RETRY_S = 0.1
PASSING_RATIO = 4  # texts that are at least this many times shorter may pass a micro-batch that is being computed

logger = logging.getLogger(__name__)

RefusalReason = Literal["queue_full", "deadline"]


class RefusedError(PolyheadError):
    """The server has too much to do. The message ends with the seconds after which a try is worthwhile."""

    def __init__(self, reason: RefusalReason, message: str, retry_s: float) -> None:
        super().__init__(f"{message}; retry in {max(retry_s, LEAST_RETRY_S):.1f} s")
        self.reason = reason


class ExpiredError(PolyheadError):
    """The request's time ended before its texts were computed."""


class CancelledRequestError(PolyheadError):
    """The caller has cancelled the request."""


class MicroBatchError(PolyheadError):
    """The engine failed; the log has the reason."""


@dataclass(frozen=True)
class QueueLimits:
    """Bounds of the queue.

    Attributes:
        texts: the most texts that wait.
        tokens: the most tokens that wait.
        default_timeout_s: a request is refused if it would begin later, whatever its own timeout is. Without one of its
            own, it is also dropped if it has not begun by then.
    """

    texts: int = 16_384
    tokens: int = 2_000_000
    default_timeout_s: float = 10.0


@dataclass
class MicroBatchRecord:
    """What the scheduler did in one step.

    Attributes:
        texts: computed texts, equal ones once.
        tokens: computed tokens.
        merged_texts: texts that were answered with the scores of an equal text.
        compute_s: seconds that the engine took.
        waits_s: per request whose last text was taken now, the seconds since its arrival.
        expired_requests: requests whose time ended.
        cancelled_requests: requests that their callers had cancelled.
    """

    texts: int = 0
    tokens: int = 0
    merged_texts: int = 0
    compute_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    expired_requests: int = 0
    cancelled_requests: int = 0


class Scheduler:
    """Owns the queue of a predictor and the thread that computes it.

    Args:
        predictor: computes the scores.
        limits: bounds of the queue.
        record: takes the numbers of each step; must be quick.
        die: called if the scheduler's thread fails; must end the process.
        cancel_after_s: a request that has waited longer is asked, before a text of it is computed, if it is cancelled.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: QueueLimits,
        record: Callable[[MicroBatchRecord], None],
        die: Callable[[BaseException], None],
        cancel_after_s: float = 0.0,
    ) -> None:
        self._predictor = predictor
        self._limits = limits
        self._record = record
        self._die = die
        self._cancel_after_s = cancel_after_s
        # A GPU works best on several micro-batches at once; a CPU lets new texts join after each.
        steps = 1 if predictor.device.type == "cpu" else 4
        self._queue = TextQueue(steps * predictor.token_budget, steps * predictor.enough_tokens)
        self._changed = threading.Condition()  # guards the queue and the numbers below
        self._closing = False
        self._tokens_per_s: float | None = None
        self._computing_since: float | None = None
        # Of the micro-batch in progress, apart from the texts that pass it:
        self._computing_tokens = 0
        self._computing_longest = 0
        self._passing_tokens = 0
        self._passing_s = 0.0
        self._thread = threading.Thread(target=self._run, name="polyhead-scheduler", daemon=True)
        predictor.set_between_layers(self._next_passing)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Computes what is queued, then ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def admit(self, timeout_s: float | None) -> None:
        """Checks, before a request is read and tokenized, that what waits already leaves time for it.

        Raises:
            RefusedError: the queue is full, or the wait would be too long.
        """
        with self._changed:
            self._check_admission(1, 0, timeout_s)

    def submit(self, requests: Sequence[ScoreRequest]) -> dict[ScoreRequest, RefusedError]:
        """Queues requests, all before the first of them is computed.

        Returns:
            The requests that are not queued, because the queue is full or because the answer would come too late.
        """
        refused = {}
        with self._changed:
            for request in requests:
                try:
                    self._check_admission(len(request.encoded), request.tokens, request.timeout_s)
                except RefusedError as error:
                    # Its traceback would keep all requests of this call until Python collects its garbage.
                    refused[request] = error.with_traceback(None)
                else:
                    request.default_timeout_s = self._limits.default_timeout_s
                    self._queue.add(request)
            self._changed.notify()
        for request in requests:
            if request not in refused and not request.has_texts:
                self._finish(request)
        return refused

    def wait_s(self) -> float | None:
        """Seconds until everything that waits now is computed; None if no rate is known and something waits."""
        with self._changed:
            return self._seconds(self._unfinished_tokens())

    def waiting(self) -> tuple[int, int]:
        """Texts and tokens that wait."""
        with self._changed:
            return self._queue.rows, self._queue.tokens

    def computing_s(self) -> float:
        """Seconds for which the micro-batch in progress has been computed; 0 if there is none."""
        since = self._computing_since
        return 0.0 if since is None else time.monotonic() - since

    def _check_admission(self, texts: int, tokens: int, timeout_s: float | None) -> None:
        queue, limits = self._queue, self._limits
        if not queue.rows:
            return  # never refuse what could begin next
        if queue.rows + texts > limits.texts or queue.tokens + tokens > limits.tokens:
            raise RefusedError(
                "queue_full",
                f"too much to do: {queue.rows} texts with {queue.tokens} tokens are waiting",
                (self._seconds(queue.tokens) or 0) / 10,
            )
        # Whatever its own timeout is, a request must begin within the default one: a caller that can wait for minutes
        # must not fill the queue for those who cannot.
        before = self._unfinished_tokens()
        refusals = [
            (wait_s - time_left_s / PATIENCE, f"{what} {PATIENCE * wait_s:.1f} s, and {allowed} {time_left_s:.1f} s")
            for ahead, time_left_s, what, allowed in (
                (before, limits.default_timeout_s, "the wait may take", "a request may wait"),
                (before + tokens, timeout_s, "the answer may take", "the request can wait"),
            )
            if time_left_s is not None
            and (wait_s := self._seconds(ahead)) is not None
            and PATIENCE * wait_s > time_left_s
        ]
        if refusals:
            retry_s, message = max(refusals)  # sooner it would be refused again
            raise RefusedError("deadline", f"too much to do: {message}", retry_s)

    def _unfinished_tokens(self) -> int:
        return self._queue.tokens + self._computing_tokens

    def _seconds(self, tokens: int) -> float | None:
        if not tokens:
            return 0.0
        return tokens / self._tokens_per_s if self._tokens_per_s else None

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            self._die(error)

    def _step(self) -> bool:
        """Computes one micro-batch, as soon as there is one; returns False at the end."""
        with self._changed:
            while not self._queue.rows:
                if self._closing:
                    return False
                self._changed.wait()
            expired = self._queue.expired(time.monotonic())
            texts = self._queue.take()
            self._computing_tokens = sum(text.tokens for text in texts)
            self._computing_longest = max((text.tokens for text in texts), default=0)
        began = self._computing_since = time.monotonic()
        self._passing_s, self._passing_tokens = 0.0, 0
        record = self._compute(texts, expired)
        self._computing_since = None
        with self._changed:
            self._computing_tokens = 0
            self._measure(record.tokens, time.monotonic() - began - self._passing_s)
        return True

    def _measure(self, tokens: int, seconds: float) -> None:
        tokens_per_s, known = tokens / max(seconds, 1e-9), self._tokens_per_s
        # Small micro-batches are slower than a long queue is. So they only show that the known rate is too low.
        if tokens < self._predictor.enough_tokens and tokens_per_s <= (known or float("inf")):
            return
        self._tokens_per_s = tokens_per_s if known is None else RATE_MEMORY * known + (1 - RATE_MEMORY) * tokens_per_s

    def _compute(self, texts: Sequence[WaitingText], expired: Sequence[ScoreRequest]) -> MicroBatchRecord:
        """Scores texts that were taken from the queue, and finishes the requests that have expired or now have all."""
        began, passed_s = time.monotonic(), self._passing_s
        record = MicroBatchRecord(expired_requests=len(expired))
        for request in expired:
            waited = f"the request's time ended in the queue after {began - request.arrived:.1f} s"
            self._fail(request, ExpiredError(f"{waited}; retry in {max(LEAST_RETRY_S, self.wait_s() or 0):.1f} s"))
        requests = requests_of(texts)
        for request in requests:
            if not request.is_finished and began - request.arrived > self._cancel_after_s and request.is_cancelled():
                record.cancelled_requests += 1
                self._fail(request, CancelledRequestError("cancelled by the client"))
        requests = [request for request in requests if not request.is_finished]
        record.waits_s = [began - request.arrived for request in requests if not request.waiting]
        places = [[place for place in text.places if not place[0].is_finished] for text in texts]
        wanted = [(text.encoded, here) for text, here in zip(texts, places, strict=True) if here]
        if wanted:
            try:
                scores = self._predictor.score([encoded for encoded, _ in wanted])
            except Exception:
                trace = traceback.format_exc().encode("ascii", "backslashreplace").decode("ascii")
                logger.error("a micro-batch of %d texts failed: %s", len(wanted), trace)
                for request in requests:
                    self._fail(request, MicroBatchError("internal error, see the server's log"))
            else:
                record.compute_s = time.monotonic() - began - (self._passing_s - passed_s)
                record.texts = len(wanted)
                record.tokens = sum(encoded.computed_tokens for encoded, _ in wanted)
                record.merged_texts = sum(len(here) for _, here in wanted) - len(wanted)
                self._deliver(wanted, scores)
        self._record(record)
        return record

    def _deliver(self, wanted: Sequence[tuple[EncodedText, list[tuple[ScoreRequest, int]]]], scores: Scores) -> None:
        for (_, places), row_scores in zip(wanted, scores, strict=True):
            for request, row in places:
                request.scores[row] = row_scores
                request.unscored -= 1
                if not request.unscored and not request.is_finished:
                    self._finish(request)

    def _next_passing(self) -> Callable[[], None] | None:
        """What the engine should compute before the next layer of the micro-batch in progress.

        Texts that pass may take as many tokens as the micro-batch itself, so that it takes at most twice as long.
        """
        longest = self._computing_longest // PASSING_RATIO
        with self._changed:
            if self._passing_tokens >= self._computing_tokens or not self._queue.has_shorter(longest):
                return None
        return lambda: self._compute_passing(longest)

    def _compute_passing(self, longest: int) -> None:
        began = time.monotonic()
        with self._changed:
            expired = self._queue.expired(began)
            texts = self._queue.take_shorter(longest)
        self._passing_tokens += sum(text.tokens for text in texts)
        try:
            self._compute(texts, expired)
        except Exception as error:  # the scheduler's own failure; else it would count as the passed micro-batch's
            self._die(error)
            raise
        self._passing_s += time.monotonic() - began

    def _fail(self, request: ScoreRequest, failure: Exception) -> None:
        if request.is_finished:
            return
        with self._changed:
            self._queue.remove(request)
        request.failure = failure
        self._finish(request)

    def _finish(self, request: ScoreRequest) -> None:
        request.is_finished = True
        request.on_finished()
