"""The scheduler: every request is finished once, with the scores that it has alone, or with a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.decode import Scores
from polyhead.encode import EncodedText
from polyhead.predictor import Predictor
from polyhead.scheduler import (
    CancelledRequestError,
    ExpiredError,
    MicroBatchError,
    MicroBatchRecord,
    QueueLimits,
    RefusedError,
    Scheduler,
)
from polyhead.text_queue import ScoreRequest
from tests.tiny import write_tiny_checkpoint

SECONDS = 20  # how long a test waits for a thread


class StepPredictor:
    """Scores are the tokens of a text; each call waits until the test lets it go on.

    Attributes:
        calls: lengths of the texts of each call.
    """

    device = torch.device("cpu")
    token_budget, enough_tokens = 64, 16

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.layers = 0
        self._between_layers: Callable[[], Callable[[], None] | None] = lambda: None

    def set_between_layers(self, between_layers: Callable[[], Callable[[], None] | None]) -> None:
        self._between_layers = between_layers

    def score(self, encoded: Sequence[EncodedText]) -> Scores:
        self.calls.append([text.token_count for text in encoded])
        self.began.release()
        assert self.may_end.acquire(timeout=SECONDS)
        layers, self.layers = self.layers, 0
        for _ in range(layers):
            while (compute := self._between_layers()) is not None:
                compute()
        if self.error is not None:
            raise self.error
        return np.array([[text.token_count] for text in encoded], dtype=np.float32)

    def go_on(self, calls: int = 1) -> None:
        """Waits until this many calls have begun and lets them end."""
        for _ in range(calls):
            assert self.began.acquire(timeout=SECONDS)
            self.may_end.release()


class Recorder:
    """Requests with what became of them, and the scheduler's records."""

    def __init__(self) -> None:
        self.records: list[MicroBatchRecord] = []
        self.deaths: list[BaseException] = []
        self.finished: list[ScoreRequest] = []
        self._one_finished = threading.Semaphore(0)

    def request(
        self, *lengths: int, first: int = 0, timeout_s: float | None = None, gone: bool = False
    ) -> ScoreRequest:
        encoded = [EncodedText([first, *range(1, length)]) for length in lengths]

        def on_finished() -> None:
            self.finished.append(request)
            self._one_finished.release()

        request = ScoreRequest(encoded, 1, on_finished, timeout_s, lambda: gone)
        return request

    def wait(self, count: int = 1) -> None:
        """Waits until so many more requests are finished."""
        for _ in range(count):
            assert self._one_finished.acquire(timeout=SECONDS)


@contextmanager
def scheduler_of(
    predictor: StepPredictor, recorder: Recorder, limits: QueueLimits | None = None
) -> Iterator[Scheduler]:
    """A running scheduler, which is closed at the end."""
    scheduler = Scheduler(
        predictor,  # type: ignore[arg-type] # only what the scheduler uses
        limits or QueueLimits(),
        recorder.records.append,
        recorder.deaths.append,
    )
    scheduler.start()
    yield scheduler
    for _ in range(100):
        predictor.may_end.release()
    scheduler.close()


def test_texts_that_arrive_meanwhile_join_the_next_micro_batch() -> None:
    """Continuous batching: what arrives while a micro-batch is computed is computed together, right after it."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        first, second, third = (recorder.request(10 + n, first=n) for n in range(3))
        scheduler.submit([first])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([second])
        scheduler.submit([third])
        assert scheduler.waiting() == (2, 23)
        predictor.may_end.release()
        predictor.go_on()
        recorder.wait(3)
    assert predictor.calls == [[10], [11, 12]]
    assert recorder.finished == [first, second, third]
    assert [request.scores.tolist() for request in recorder.finished] == [[[10]], [[11]], [[12]]]


def test_requests_that_are_submitted_together_are_computed_together() -> None:
    """The first of them does not start alone."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        assert scheduler.submit([recorder.request(10, first=n) for n in range(5)]) == {}
        predictor.go_on()
        recorder.wait(5)
    assert predictor.calls == [[10] * 5]


def test_equal_texts_are_computed_once() -> None:
    """Equal texts that wait at the same time get the same scores from one computation, which is counted."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        scheduler.submit([recorder.request(9, 9), recorder.request(9)])
        predictor.go_on()
        recorder.wait(2)
    assert predictor.calls == [[9]]
    assert [request.scores.tolist() for request in recorder.finished] == [[[9], [9]], [[9]]]
    assert [record.merged_texts for record in recorder.records] == [2]


def test_a_request_is_answered_with_its_last_text() -> None:
    """A request of several micro-batches is finished once, with all scores; a shorter request is finished before."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        mixed, short = recorder.request(60, 8), recorder.request(9)
        scheduler.submit([mixed, short])
        predictor.go_on()
        recorder.wait()
        assert recorder.finished == [short]
        predictor.go_on()
        recorder.wait()
    assert predictor.calls == [[8, 9], [60]]
    assert mixed.scores.tolist() == [[60], [8]]


def test_a_request_without_readable_texts_is_finished_at_once() -> None:
    """If nothing must be computed, nothing waits; the scores are NaN."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        request = recorder.request(5)
        request.encoded = [EncodedText((), error="blank")]
        scheduler.submit([request])
        recorder.wait()
    assert predictor.calls == []
    assert np.isnan(request.scores).all()


def test_shorter_texts_pass_between_layers() -> None:
    """A text that is much shorter than a micro-batch in progress is computed before its next layer."""
    predictor, recorder = StepPredictor(), Recorder()
    predictor.layers = 3
    with scheduler_of(predictor, recorder) as scheduler:
        long, short, medium = recorder.request(60), recorder.request(8, first=1), recorder.request(40, first=2)
        scheduler.submit([long])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([short, medium])
        predictor.may_end.release()
        predictor.go_on(2)
        recorder.wait(3)
    assert predictor.calls == [[60], [8], [40]]
    assert recorder.finished == [short, long, medium]


def test_passing_ends_after_as_many_tokens() -> None:
    """However many short texts arrive, a micro-batch takes at most about twice as long."""
    predictor, recorder = StepPredictor(), Recorder()
    predictor.layers = 50
    with scheduler_of(predictor, recorder) as scheduler:
        scheduler.submit([recorder.request(60)])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([recorder.request(8, first=n) for n in range(1, 40)])
        predictor.may_end.release()
        for _ in range(60):
            predictor.may_end.release()
        recorder.wait(40)
    long = next(place for place, request in enumerate(recorder.finished) if request.scores[0, 0] == 60)
    assert 60 <= 8 * long <= 60 + predictor.enough_tokens + 8


def test_a_full_queue_refuses_with_seconds_to_wait() -> None:
    """Texts or tokens over the limit are refused; the message ends with the seconds after which a try is worthwhile."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder, QueueLimits(texts=2, tokens=100)) as scheduler:
        scheduler.submit([recorder.request(10)])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([recorder.request(10, first=1)])
        many, large, fits = recorder.request(5, 6), recorder.request(95, first=3), recorder.request(11)
        refused = scheduler.submit([many, large, fits])
        with pytest.raises(RefusedError, match=r"2 texts .* are waiting; retry in \d+\.\d s$"):
            scheduler.admit(None)
    assert set(refused) == {many, large}
    assert refused[many].reason == "queue_full"
    assert many not in recorder.finished


@pytest.mark.parametrize(
    ("default_s", "timeouts", "refused"), [(60, (0.001, 60, None), [0]), (0.2, (60, None), [0, 1])]
)
def test_a_wait_over_the_deadline_is_refused(
    default_s: float, timeouts: Sequence[float | None], refused: Sequence[int]
) -> None:
    """By the measured rate: what would end after its own timeout, and what would begin after the default one.

    A caller with much time may not make the queue longer than the others can wait.
    """
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder, QueueLimits(default_timeout_s=default_s)) as scheduler:
        scheduler.submit([recorder.request(30)])
        assert not threading.Event().wait(0.5)  # so that 30 tokens take at least this long
        predictor.go_on()
        recorder.wait()
        scheduler.submit([recorder.request(30, first=1)])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([recorder.request(20, first=2)])
        late = [recorder.request(5, first=3 + n, timeout_s=timeout_s) for n, timeout_s in enumerate(timeouts)]
        found = scheduler.submit(late)
    assert list(found) == [late[n] for n in refused]
    assert {error.reason for error in found.values()} == {"deadline"}
    assert all("retry in" in str(error) for error in found.values())


def test_a_refusal_names_the_longest_wait() -> None:
    """Sooner, the request would be refused again: by its own timeout, or by the default one."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder, QueueLimits(default_timeout_s=10)) as scheduler:
        scheduler._tokens_per_s = 10.0
        scheduler.submit([recorder.request(10)])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([recorder.request(100, first=1)])  # 11 s until everything is computed, or twice that
        short, long = (recorder.request(10, first=2, timeout_s=timeout_s) for timeout_s in (1, 15))
        refused = scheduler.submit([short, long])
    assert str(refused[short]).endswith("24.0 s, and the request can wait 1.0 s; retry in 11.5 s")
    assert str(refused[long]).endswith("22.0 s, and a request may wait 10.0 s; retry in 6.0 s")


def test_what_expires_is_not_computed() -> None:
    """A request whose time ends in the queue fails without being computed, and says how long it waited."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        scheduler.submit([recorder.request(10)])
        assert predictor.began.acquire(timeout=SECONDS)
        expired = recorder.request(20, first=1, timeout_s=0.01)
        scheduler.submit([expired])
        assert not threading.Event().wait(0.02)
        predictor.may_end.release()
        recorder.wait(2)
    assert predictor.calls == [[10]]
    assert isinstance(expired.failure, ExpiredError)
    assert str(expired.failure).startswith("the request's time ended in the queue after 0.")
    assert sum(record.expired_requests for record in recorder.records) == 1


def test_cancelled_requests_are_not_computed() -> None:
    """A request that waited and is cancelled fails without being computed; others of its micro-batch are computed."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        scheduler.submit([recorder.request(10)])
        assert predictor.began.acquire(timeout=SECONDS)
        gone, stays = recorder.request(20, first=1, gone=True), recorder.request(20, first=2)
        scheduler.submit([gone, stays])
        assert not threading.Event().wait(0.03)
        predictor.may_end.release()
        predictor.go_on()
        recorder.wait(3)
    assert predictor.calls == [[10], [20]]
    assert isinstance(gone.failure, CancelledRequestError)
    assert stays.failure is None


def test_an_error_fails_only_its_requests() -> None:
    """If a micro-batch fails, its requests fail, once each; later ones are computed."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        predictor.error = RuntimeError("secret")
        bad = recorder.request(60, 8)
        scheduler.submit([bad])
        predictor.go_on()
        recorder.wait()
        predictor.error = None
        good = recorder.request(9)
        scheduler.submit([good])
        predictor.go_on()
        recorder.wait()
    assert recorder.finished == [bad, good]
    assert isinstance(bad.failure, MicroBatchError)
    assert "secret" not in str(bad.failure)
    assert predictor.calls == [[8], [9]]
    assert recorder.deaths == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_thread_ends_the_process() -> None:
    """Whatever ends the thread is passed to `die`, which ends the process."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        predictor.error = SystemExit()
        scheduler.submit([recorder.request(8)])
        predictor.go_on()
        scheduler.close()
    assert [type(error) for error in recorder.deaths] == [SystemExit]


def test_close_computes_what_was_accepted() -> None:
    """A swap or a stop answers every accepted request."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        scheduler.submit([recorder.request(8, first=n) for n in range(30)])
        for _ in range(50):
            predictor.may_end.release()
        scheduler.close()
    assert len(recorder.finished) == 30


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A tiny model."""
    path: Path = tmp_path_factory.mktemp("scheduler") / "checkpoint"
    write_tiny_checkpoint(path)
    return Predictor.load(path, precision="fp32")


WORDS = st.lists(st.sampled_from(["rain", "sport", "snow", "word"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=1, max_size=8), st.booleans())
def test_scores_are_those_of_a_text_alone(predictor: Predictor, rows: list[list[str]], together: bool) -> None:
    """However requests are batched, each text gets the scores that it has alone."""
    recorder = Recorder()
    scheduler = Scheduler(predictor, QueueLimits(), recorder.records.append, recorder.deaths.append)
    scheduler.start()
    requests = []
    for texts in rows:
        request = recorder.request()
        request.encoded, request.width = predictor.encode(texts), predictor.schema.width
        request.__post_init__()
        requests.append(request)
    for batch in [requests] if together else [[request] for request in requests]:
        scheduler.submit(batch)
    scheduler.close()
    assert sorted(map(id, recorder.finished)) == sorted(map(id, requests))
    for request, texts in zip(requests, rows, strict=True):
        alone = np.concatenate([predictor.score(predictor.encode([text])) for text in texts])
        np.testing.assert_allclose(request.scores, alone, atol=1e-6)


def test_a_failure_of_the_scheduler_while_texts_pass_ends_the_process() -> None:
    """If a passing text's answer cannot be handed over, nobody waits for ever: the process is told to end."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        long, short = recorder.request(60), recorder.request(5)

        def broken() -> None:
            raise RuntimeError("handed over badly")

        short.on_finished = broken
        predictor.layers = 1
        scheduler.submit([long])
        assert predictor.began.acquire(timeout=SECONDS)
        scheduler.submit([short])
        predictor.may_end.release()
        predictor.go_on()
        recorder.wait()
    assert [str(death) for death in recorder.deaths] == ["handed over badly"]


def test_a_rate_that_was_measured_too_low_recovers_with_small_micro_batches() -> None:
    """Micro-batches too small to measure the rate still raise one that is too low, for example after a pause."""
    predictor, recorder = StepPredictor(), Recorder()
    with scheduler_of(predictor, recorder) as scheduler:
        scheduler._measure(16, 1000.0)
        scheduler._measure(8, 0.01)
        assert scheduler._tokens_per_s is not None
        assert scheduler._tokens_per_s > 100
        raised = scheduler._tokens_per_s
        scheduler._measure(8, 1000.0)
        assert scheduler._tokens_per_s == raised
