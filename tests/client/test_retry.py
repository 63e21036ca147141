"""What is retried, where, how often and when."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from polyhead_client import (
    BadResponseError,
    RequestRejectedError,
    RequestTimeoutError,
    RetryPolicy,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
)
from polyhead_client.retry import RetryBudget, pause_s
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
        (Failure(502, "bad gateway"), ServerFailedError),
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


def test_broken_connections_are_asked_once_more(ask: Ask, server: FakeServer) -> None:
    """A request that may crash servers is not sent to one after the other."""
    server.failures = [Failure(broken=True)] * 100
    with ask(server, ["a:1", "b:1", "c:1"], retry=QUICK) as client, pytest.raises(ServerUnreachableError):
        client.classify("text")
    assert len(server.failures) == 98


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


def test_dead_model_processes_are_asked_once_more(ask: Ask, server: FakeServer) -> None:
    """A request that may crash model processes is not sent to one replica after the other."""
    server.failures = [Failure(500, "Stub process is not healthy")] * 100
    with ask(server, ["a:1", "b:1", "c:1"], retry=QUICK) as client, pytest.raises(ServerFailedError):
        client.classify("text")
    assert len(server.failures) == 98


def test_refused_connections_try_every_replica(ask: Ask, server: FakeServer) -> None:
    """Replicas that refuse the connection are skipped at once, whatever the budget."""
    server.failures = [Failure(refused=True)] * 5
    places = [f"host{number}:1" for number in range(6)]
    began = time.monotonic()
    with ask(server, places, retry=RetryPolicy(max_attempts=2, base_s=60, cap_s=60, burst=0)) as client:
        assert client.classify("text").error is None
    assert time.monotonic() - began < 5


def test_budget_bounds_repetitions(ask: Ask, server: FakeServer) -> None:
    """Over many calls to an overloaded server, retries are the burst and a tenth of the calls, not three per call."""
    server.failures = [BUSY] * 1000
    calls = 100
    with ask(server, retry=RetryPolicy(max_attempts=4, base_s=0.0, burst=5, budget=0.1)) as client:
        for _ in range(calls):
            with pytest.raises(ServerOverloadedError):
                client.classify("text")
    repetitions = 1000 - len(server.failures) - calls
    assert 5 <= repetitions <= 5 + calls // 10


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
    assert len(server.requests) < 5


def test_pauses_are_jittered_and_grow() -> None:
    """A pause is random between 0 and a limit that doubles up to the cap."""
    error = ServerOverloadedError("busy")
    policy = RetryPolicy(base_s=0.1, cap_s=0.3)
    for attempt, ceiling in ((1, 0.1), (2, 0.2), (3, 0.3), (9, 0.3)):
        drawn = [pause_s(policy, attempt, error) for _ in range(300)]
        assert 0 <= min(drawn) < 0.2 * ceiling
        assert 0.8 * ceiling < max(drawn) <= ceiling


@pytest.mark.parametrize("fields", [{"max_attempts": 0}, {"burst": -1}, {"base_s": -1.0}, {"cap_s": float("nan")}])
def test_bad_policies_are_refused(fields: dict[str, float]) -> None:
    """A policy is checked when it is made."""
    with pytest.raises(UsageError, match="retry"):
        RetryPolicy(**fields)  # type: ignore[arg-type]
