"""model.py under load: what is sent later, refused, expired or cancelled. Each request gets one response."""

from __future__ import annotations

import dataclasses
import gc
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import Request, texts
from tests.serving.served_model import SECONDS, HeldEngine, only, start
from tests.tiny import tiny_tokenizer

Hasty = Callable[..., Any]


@pytest.fixture
def hasty(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Hasty:
    """Starts a model whose `execute` does not wait for answers; takes more parameters of config.pbtxt."""
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})

    def start_hasty(**parameters: str) -> Any:
        return start(served_repository, monkeypatch, at_once_s="0.000001", **parameters)

    return start_hasty


def test_a_model_whose_engine_hangs_is_not_ready(hasty: Hasty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Triton that asks `is_ready` hears no while one micro-batch takes too long, and yes again after it."""
    model = hasty()
    assert model.is_ready()
    engine = HeldEngine(model)
    request = Request(texts(b"Rain"))
    assert model.execute([request]) == [None]
    assert engine.has_begun.wait(SECONDS)
    assert model.is_ready()
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["served_model"], "STALLED_S", 0.0)
        assert not model.is_ready()
    engine.release()
    assert request.sender.arrived.wait(SECONDS)
    model.finalize()
    assert model.is_ready()


def answers(requests: Sequence[Request], returned: Sequence[Any]) -> list[Any]:
    """The response to each request: exactly one, returned or sent."""
    found = []
    for request, response in zip(requests, returned, strict=True):
        (answer,) = [*request.sender.sent, *([] if response is None else [response])]
        found.append(answer)
    return found


def test_what_is_not_there_soon_is_sent_later(
    hasty: Hasty, served_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`execute` returns None for what still waits; each request gets exactly one response, the same as alone."""
    model = hasty()
    engine = HeldEngine(model)
    requests = [
        Request(texts(b"word " * 200), outputs=("PREDICTION",)),
        Request(texts(b"Rain", b"Sport")),
        Request(texts(b""), '{"topk": 1}'),
        Request(texts(b"tokens"), outputs=("TOKEN_COUNT",)),
    ]
    returned = model.execute(requests)
    assert [response is None for response in returned] == [True, True, False, False]
    assert not any(request.sender.sent for request in requests)
    engine.release()
    for request in requests[:2]:
        assert request.sender.arrived.wait(SECONDS)
    model.finalize()
    patient = start(served_repository, monkeypatch, at_once_s="60")
    for request, answer in zip(requests, answers(requests, returned), strict=True):
        alone = only(patient, Request(request.text, request.raw_parameters, request.outputs))
        assert str(answer.error) == str(alone.error)
        for tensor in alone.output_tensors:
            if tensor.name == "SCORES":
                np.testing.assert_allclose(answer[tensor.name], tensor.array, atol=1e-6)
            elif tensor.name != "PREDICTION":
                np.testing.assert_array_equal(answer[tensor.name], tensor.array)
    patient.finalize()


def test_the_next_call_is_tokenized_while_the_engine_computes(hasty: Hasty) -> None:
    """`execute` tokenizes in Triton's thread, so what arrives during a micro-batch waits with its tokens counted."""
    model = hasty()
    engine = HeldEngine(model)
    first, second = Request(texts(b"Rain")), Request(texts(b"word word word", b"Sport"))
    assert model.execute([first]) == [None]
    assert engine.has_begun.wait(SECONDS)
    assert model.execute([second]) == [None]
    tokens = sum(len(tiny_tokenizer().encode(text).ids) for text in ("word word word", "Sport"))
    assert model.scheduler.waiting() == (2, tokens)
    assert engine.calls == [1]
    engine.release()
    model.finalize()
    assert all(answer.error is None for answer in answers([first, second], [None, None]))


def test_finalize_answers_what_was_accepted(hasty: Hasty) -> None:
    """A model that is taken away sends every response that it still owes."""
    model = hasty()
    requests = [Request(texts(b"word " * number)) for number in range(1, 60)]
    returned = model.execute(requests)
    model.finalize()
    assert all(answer.error is None for answer in answers(requests, returned))


def test_a_sender_that_fails_is_logged(hasty: Hasty) -> None:
    """A response that cannot be sent affects no other response and is not sent twice."""
    model = hasty()
    engine = HeldEngine(model)
    bad, good = Request(texts(b"Rain")), Request(texts(b"Sport"))
    bad.sender.error = RuntimeError("no shared memory: \xe9")
    assert model.execute([bad, good]) == [None, None]
    engine.release()
    model.finalize()
    assert len(bad.sender.sent) == len(good.sender.sent) == 1
    assert good.sender.sent[0].error is None
    assert "no shared memory" in pb_utils.Logger.lines[0]


def test_a_request_without_a_sender_is_answered_at_once(hasty: Hasty, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Triton gives no response sender, `execute` returns an error instead of nothing, and nothing is sent later."""
    model = hasty()
    engine = HeldEngine(model)
    request = Request(texts(b"Rain"))
    monkeypatch.setattr(request, "get_response_sender", lambda: 1 / 0)
    (response,) = model.execute([request])
    engine.release()
    model.finalize()
    assert response.error.code == pb_utils.TritonError.INTERNAL
    assert not request.sender.sent


def test_overload_is_refused_with_seconds_to_wait(hasty: Hasty) -> None:
    """What does not fit into the queue gets UNAVAILABLE at once; what was accepted is answered."""
    model = hasty(queue_texts="3")
    engine = HeldEngine(model)
    requests = [Request(texts(f"text {number}".encode()), outputs=("SCORES",)) for number in range(9)]
    returned = model.execute(requests)
    refused = [response for response in returned if response is not None]
    assert 5 <= len(refused) <= 6  # one text may be with the engine already
    assert {response.error.code for response in refused} == {pb_utils.TritonError.UNAVAILABLE}
    assert all(re.search(r"; retry in \d+\.\d s$", str(response.error)) for response in refused)
    engine.release()
    model.finalize()
    assert sum(answer.error is None for answer in answers(requests, returned)) == 9 - len(refused)
    assert sum(pb_utils.MetricFamily.value("polyhead_refused_requests_total", reason="queue_full")) == len(refused)


def test_an_expired_request_is_unavailable(hasty: Hasty) -> None:
    """A request whose own timeout ends in the queue gets UNAVAILABLE and is not computed."""
    model = hasty()
    engine = HeldEngine(model)
    first, late = Request(texts(b"word " * 200)), Request(texts(b"Rain"), timeout_us=20_000)
    assert model.execute([first]) == [None]
    assert engine.has_begun.wait(SECONDS)
    assert model.execute([late]) == [None]
    time.sleep(0.1)
    engine.release()
    model.finalize()
    assert late.sender.sent[0].error.code == pb_utils.TritonError.UNAVAILABLE
    assert "time ended in the queue" in str(late.sender.sent[0].error)
    assert engine.calls == [1]
    assert sum(pb_utils.MetricFamily.value("polyhead_dropped_requests_total", reason="expired")) == 1


def test_cancelled_requests_are_not_computed(hasty: Hasty) -> None:
    """A cancelled request that waits gets CANCELLED and is not computed; others are answered."""
    model = hasty()
    engine = HeldEngine(model)
    requests = [Request(texts(b"first")), Request(texts(b"Rain", b"Sport"), cancelled=True), Request(texts(b"Rain"))]
    for request in requests:
        assert model.execute([request]) == [None]
        assert engine.has_begun.wait(SECONDS)
    time.sleep(0.2)  # only a request that has waited for a while is asked
    engine.release()
    model.finalize()
    first, gone, good = (request.sender.sent[0].error for request in requests)
    assert gone.code == pb_utils.TritonError.CANCELLED
    assert first is good is None
    assert engine.calls == [1, 1]
    assert sum(pb_utils.MetricFamily.value("polyhead_dropped_requests_total", reason="cancelled")) == 1


def test_a_dead_scheduler_ends_the_process(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the scheduler's thread dies, the process ends with a line in the log, so that the supervisor sees it."""
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)

    def die(encoded: Any) -> Any:
        raise SystemExit

    model.predictor.score = die
    model.config = dataclasses.replace(model.config, at_once_s=0.05)
    model.execute([Request(texts(b"Rain"))])
    model.scheduler.close()
    assert ended == [1]
    assert "the scheduler failed" in pb_utils.Logger.lines[-1]


def test_a_backlog_in_triton_is_queued_at_once(model: Any) -> None:
    """If a full call comes right after another one, more wait in Triton, so `execute` does not wait for its answers."""

    def full_call() -> list[Request]:
        return [Request(texts(f"text {number}".encode()), outputs=("SCORES",)) for number in range(64)]

    engine = HeldEngine(model)
    timer = threading.Timer(0.1, engine.release)
    timer.start()
    assert None not in model.execute(full_call())  # the engine is slow, but nothing says that more wait
    timer.join()
    engine = HeldEngine(model)
    model.returned = time.monotonic() + 60  # however long the test takes to get here
    requests = full_call()
    assert model.execute(requests) == [None] * 64
    engine.release()
    assert all(request.sender.arrived.wait(SECONDS) for request in requests)


def test_waiting_texts_are_a_gauge_of_all_instances(hasty: Hasty) -> None:
    """What waits is counted while it waits, and no longer when it is answered."""
    model = hasty()
    engine = HeldEngine(model)
    model.execute([Request(texts(b"first"))])
    assert engine.has_begun.wait(SECONDS)
    model.execute([Request(texts(b"second", b"third"))])
    value = pb_utils.MetricFamily.value
    deadline = time.monotonic() + SECONDS
    while sum(value("polyhead_waiting_texts")) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sum(value("polyhead_waiting_tokens")) > 2
    engine.release()
    model.finalize()
    assert sum(value("polyhead_waiting_texts")) == sum(value("polyhead_waiting_tokens")) == 0


def test_what_a_request_holds_is_freed_with_its_response(hasty: Hasty) -> None:
    """Triton's request, and so its shared memory, is freed with its answer, not when Python collects its garbage."""
    model = hasty(queue_texts="2")
    engine = HeldEngine(model)
    requests = [Request(texts(f"text {number}".encode())) for number in range(9)]
    senders = [request.sender for request in requests]
    gone = [weakref.ref(request) for request in requests]
    gc.collect()
    gc.disable()
    try:
        returned = model.execute(requests)
        requests.clear()
        assert not any(request() for request in gone)  # refused, or answered by their senders from now on
        engine.release()
        for sender, response in zip(senders, returned, strict=True):
            assert response is not None or sender.arrived.wait(SECONDS)
        model.finalize()
    finally:
        gc.enable()
