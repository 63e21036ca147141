"""What is retried, where, how often and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest

from polyhead_client import (
    BadResponseError,
    Client,
    RequestRejectedError,
    RequestTimeoutError,
    RetryPolicy,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
)
from polyhead_client.replicas import Replicas
from polyhead_client.request import Call, Deadline, HttpReply, HttpRequest
from polyhead_client.retry import Pause, RetryBudget, RetryLoop, pause_s
from polyhead_client.testing import Failure, FakeServer
from tests.client.surface import Ask

QUICK = RetryPolicy(base_s=0.001, cap_s=0.01)
BUSY = Failure(503, "Exceeds maximum queue size")


@pytest.mark.parametrize("failure", [BUSY, Failure(429, "slow down"), Failure(refused=True), Failure(broken=True)])
def test_what_was_not_computed_is_asked_again(ask: Ask, server: FakeServer, failure: Failure) -> None:
    """Shed load, a refused connection and a broken one are retried."""
    server.failures = [failure]
    with ask(server, retry=QUICK) as client:
        assert client.classify("text").error is None


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure(500, "out of memory"), ServerFailedError),
        (Failure(400, "parameter"), RequestRejectedError),
        (Failure(body=b"garbage"), BadResponseError),
    ],
)
def test_what_may_have_been_computed_is_not(ask: Ask, server: FakeServer, failure: Failure, kind: type) -> None:
    """A failure of the model, a rejection and an unreadable answer are raised at once."""
    server.failures = [failure, Failure(500, "a second request was made")]
    with ask(server, retry=QUICK) as client, pytest.raises(kind):
        client.classify("text")
    assert len(server.failures) == 1


def test_attempts_end(ask: Ask, server: FakeServer) -> None:
    """A server that stays overloaded is asked max_attempts times, and its message is in the error."""
    server.failures = [BUSY] * 100
    with (
        ask(server, retry=RetryPolicy(max_attempts=3, base_s=0.001)) as client,
        pytest.raises(ServerOverloadedError, match="queue size"),
    ):
        client.classify("text")
    assert len(server.failures) == 97


@pytest.mark.parametrize(
    "message",
    [
        "Stub process 'gpt2_classifier_0_0' is not healthy.",
        "Failed to increase the shared memory pool size for key 'x' to 1048576 bytes.",
    ],
)
def test_replica_that_cannot_compute_is_passed_over(ask: Ask, server: FakeServer, message: str) -> None:
    """If a replica's model process died or its shared memory is full, another replica answers."""
    server.failures = [Failure(500, message)]
    with ask(server, ["a:1", "b:1"], retry=RetryPolicy(base_s=60, cap_s=60)) as client:
        assert client.classify("text").error is None


def test_refused_connections_try_every_replica(ask: Ask, server: FakeServer) -> None:
    """Replicas that refuse the connection are skipped at once, whatever the budget."""
    server.failures = [Failure(refused=True)] * 5
    places = [f"host{number}:1" for number in range(6)]
    began = time.monotonic()
    with ask(server, places, retry=RetryPolicy(max_attempts=2, base_s=60, cap_s=60, burst=0)) as client:
        assert client.classify("text").error is None
    assert time.monotonic() - began < 5


def test_budget_refills_by_calls() -> None:
    """Each call adds its share, up to the burst."""
    budget = RetryBudget(RetryPolicy(budget=0.5, burst=2))
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(10):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_retry_after_is_waited_for(ask: Ask, server: FakeServer) -> None:
    """A server that names a time is not asked before it."""
    server.failures = [Failure(503, "busy", {"Retry-After": "1"})]
    began = time.monotonic()
    with ask(server, retry=QUICK) as client:
        client.classify("text")
    assert 1.0 <= time.monotonic() - began < 3.0


def test_retry_after_beyond_the_deadline_is_not_waited_for(ask: Ask, server: FakeServer) -> None:
    """If the server's time is after the deadline, the error comes at once and has that time."""
    server.failures = [Failure(503, "busy", {"Retry-After": formatdate(time.time() + 60, usegmt=True)})]
    began = time.monotonic()
    with ask(server, retry=QUICK, timeout_s=5) as client, pytest.raises(ServerOverloadedError) as caught:
        client.classify("text")
    assert time.monotonic() - began < 2
    assert 50 < caught.value.retry_after_s <= 60


def test_deadline_bounds_the_whole_call(ask: Ask, server: FakeServer) -> None:
    """Batches and retries share one deadline."""
    server.failure = Failure(hang_s=0.2)
    began = time.monotonic()
    with ask(server, batch_size=1) as client, pytest.raises(RequestTimeoutError, match=r"within 0\.5 s"):
        client.classify(["a"] * 50, timeout_s=0.5)
    assert time.monotonic() - began < 2
    assert len(server.requests) < 15


def test_pauses_are_jittered_and_grow() -> None:
    """A pause is random between 0 and a limit that doubles up to the cap."""
    policy = RetryPolicy(base_s=0.1, cap_s=0.3)
    for attempt, ceiling in ((1, 0.1), (2, 0.2), (3, 0.3), (9, 0.3)):
        drawn = [pause_s(policy, attempt) for _ in range(300)]
        assert 0 <= min(drawn) < 0.2 * ceiling
        assert 0.8 * ceiling < max(drawn) <= ceiling


@pytest.mark.parametrize("fields", [{"max_attempts": 0}, {"burst": -1}, {"base_s": -1.0}, {"cap_s": float("nan")}])
def test_bad_policies_are_refused(fields: dict[str, float]) -> None:
    """A policy is checked when it is made."""
    with pytest.raises(UsageError, match="retry"):
        RetryPolicy(**fields)  # type: ignore[arg-type]


@dataclass
class Killed(FakeServer):
    """A fake that is ended by a request with the text "kill", and starts again after some time."""

    failure_of_kill: Failure = field(default_factory=lambda: Failure(broken=True))
    kills: int = 0

    def reply(self, request: HttpRequest, failure: Failure) -> HttpReply:
        """The answer, or the end of the server."""
        if b"kill" in request.body:
            self.kills += 1
            if self.failure_of_kill.broken:
                raise ConnectionResetError("the fake was ended")
            time.sleep(self.failure_of_kill.hang_s)
            failure = self.failure_of_kill
        return super().reply(request, failure)


@pytest.mark.parametrize("servers", [["a:1"], ["a:1", "b:1", "c:1", "d:1"]])
@pytest.mark.parametrize(
    "failure",
    [
        Failure(broken=True),
        Failure(500, "Stub process 'x' is not healthy."),
        Failure(502),
        Failure(504),
        Failure(503, "the server ended before it answered; try again once"),
        Failure(503, "the server is restarting; try again later"),
    ],
)
def test_request_that_ends_servers_is_repeated_once(ask: Ask, servers: list[str], failure: Failure) -> None:
    """A request without an answer may have ended its server, so it is sent to two servers at most."""
    server = Killed(failure_of_kill=failure)
    with (
        ask(server, servers, retry=QUICK, timeout_s=5) as client,
        pytest.raises((ServerUnreachableError, ServerFailedError)),
    ):
        client.classify("kill")
    assert server.kills == 2


def test_request_is_repeated_only_where_a_canary_was_answered(ask: Ask, server: FakeServer) -> None:
    """After a request without an answer the client sends the canary text until it is answered."""
    dead = Failure(500, "Stub process 'gpt2_classifier_0_0' is not healthy.")
    server.failures = [dead, dead, Failure(broken=True), Failure(refused=True), BUSY, dead]
    with ask(server, retry=QUICK) as client:
        assert client.classify("text").error is None
    assert [asked.texts for asked in server.requests] == [["canary"], ["text"]]


def test_deadline_that_ends_before_the_server_is_back(ask: Ask, server: FakeServer) -> None:
    """The error is that of the request without an answer, not of the canary texts."""
    server.failures = [Failure(broken=True), *[Failure(refused=True)] * 100_000]
    with ask(server, retry=QUICK, timeout_s=0.5) as client, pytest.raises(ServerUnreachableError, match="broken"):
        client.classify("text")


def test_pause_that_outlasts_the_deadline_keeps_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a busy machine wakes the client only after the deadline, the error still says that nobody listened."""
    call, deadline = Call("topics", ""), Deadline(1.0)
    steps = RetryLoop(Replicas("127.0.0.1:9"), RetryPolicy()).ask(call, call, deadline, lambda reply: None)
    next(steps)
    assert isinstance(steps.throw(ServerUnreachableError("no connection")), Pause)
    monkeypatch.setattr(deadline, "remaining_s", lambda: 0.0)
    with pytest.raises(ServerUnreachableError, match="no connection"):
        next(steps)


def test_restart_costs_nothing(ask: Ask, server: FakeServer) -> None:
    """classify, lists, scores, schema and streams get their answers after the server was away for a second."""
    calls: list[Callable[[Any], Any]] = [
        lambda client: client.classify("text"),
        lambda client: client.classify(["text"] * 10),
        lambda client: client.scores(["text"] * 10),
        lambda client: client.schema(),
        lambda client: list(client.stream(["text"] * 10)),
    ]
    for call in calls:
        server.failures = [Failure(broken=True)]
        server.failure = Failure(refused=True)
        back = threading.Timer(1.0, lambda: setattr(server, "failure", None))
        with ask(server, batch_size=4, timeout_s=20) as client:
            back.start()
            assert call(client) is not None
        back.join()


def test_replica_that_hangs_costs_a_part_of_the_deadline(ask: Ask, server: FakeServer) -> None:
    """Another replica answers within the deadline, and the one that hangs is set aside at once."""
    server.failures = [Failure(hang_s=60)]
    began = time.monotonic()
    with ask(server, ["a:1", "b:1"], timeout_s=3) as client:
        assert client.classify("text").error is None
        assert 1 < time.monotonic() - began < 2.5
        assert all(client.classify("text").error is None for _ in range(4))


def test_named_time_is_waited_for(ask: Ask, server: FakeServer) -> None:
    """A server that says when to come back is not asked before that; a longer time than the deadline ends the call."""
    server.failures = [Failure(503, "the queue is full; retry in 0.6 s")]
    began = time.monotonic()
    with ask(server, retry=QUICK) as client:
        client.classify("text")
        assert 0.6 <= time.monotonic() - began < 3.0
        server.failures = [Failure(503, "the queue is full; retry in 12.5 s")]
        with pytest.raises(ServerOverloadedError) as caught:
            client.classify("text", timeout_s=5)
    assert caught.value.retry_after_s == 12.5
    assert time.monotonic() - began < 4


def test_empty_budget_slows_retries(ask: Ask, server: FakeServer) -> None:
    """Beyond the budget a server that sheds load is asked again after at least half of the longest pause."""
    server.failure = BUSY
    with ask(server, retry=RetryPolicy(base_s=0.0, cap_s=0.4, burst=5, budget=0.0), timeout_s=2) as client:
        server.failures = [BUSY] * 1000
        with pytest.raises(ServerOverloadedError):
            client.classify("text")
    assert 6 < 1000 - len(server.failures) < 25


def test_a_call_that_goes_on_trying_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address looks like a restart, so after a while the log says what is wrong; not for each try."""
    monkeypatch.setattr("polyhead_client.retry.NOTE_AFTER_S", 0.2)
    with Client("127.0.0.1:9", timeout_s=1.0) as client, pytest.raises(ServerUnreachableError):
        client.classify("Rain")
    (record,) = caplog.records
    assert "no connection to 127.0.0.1:9" in record.message
    assert "trying for " in record.message
