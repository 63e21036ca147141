"""Which replica is asked, and which is set aside."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from polyhead_client import BadResponseError, RequestTimeoutError, ServerFailedError, ServerOverloadedError
from polyhead_client.errors import PolyheadClientError, ServerUnreachableError
from polyhead_client.replicas import FAILURES_ASIDE, Replicas

LOST = ServerUnreachableError("gone")


@pytest.fixture
def replicas() -> Replicas:
    """Three replicas."""
    return Replicas(["a:1", "b:1", "c:1"])


def answer(replicas: Replicas, error: PolyheadClientError | None = None) -> str:
    """Takes a replica, gives it back, and returns its address."""
    replica = replicas.take()
    replicas.give_back(replica, error, answered=error is None)
    return replica.address


def test_idle_replicas_take_turns(replicas: Replicas) -> None:
    """Without load, the replicas take turns."""
    assert Counter(answer(replicas) for _ in range(9)) == {"a:1": 3, "b:1": 3, "c:1": 3}


def test_least_outstanding_is_asked(replicas: Replicas) -> None:
    """A slow replica gets fewer requests."""
    slow = replicas.take()
    others = [replicas.take() for _ in range(2)]
    assert {slow.address, *(one.address for one in others)} == {"a:1", "b:1", "c:1"}
    for one in others:
        replicas.give_back(one, None, answered=True)
    assert slow.address not in {answer(replicas) for _ in range(6)}


def test_lost_replica_is_set_aside_then_tried_by_one(replicas: Replicas) -> None:
    """After a lost connection the others are asked; later one request tries it, and an answer brings it back."""
    lost = replicas.take()
    replicas.give_back(lost, LOST, answered=False)
    assert lost.address not in {answer(replicas) for _ in range(9)}
    lost.aside_until = time.monotonic() - 1
    taken = [replicas.take() for _ in range(9)]
    assert sum(one is lost for one in taken) == 1
    for one in taken:
        replicas.give_back(one, None, answered=True)
    assert lost.address in {answer(replicas) for _ in range(3)}
    assert (lost.failures, lost.aside_until, lost.outstanding) == (0, 0.0, 0)


def test_time_aside_doubles() -> None:
    """The time aside doubles for a replica that stays away, up to half a minute."""
    replicas = Replicas(["a:1", "b:1"])
    (lost,) = (one for one in replicas.all if one.address == "a:1")
    longest = 0.0
    for _ in range(12):
        replicas.enter(lost)
        lost.aside_until = 0.0
        replicas.give_back(lost, LOST, answered=False)
        aside_s = lost.aside_until - time.monotonic()
        assert aside_s > 0.4 * longest
        longest = max(longest, aside_s)
    assert 14 < longest <= 30


@pytest.mark.parametrize(
    "error", [ServerFailedError("500"), RequestTimeoutError("slow"), BadResponseError("garbage")], ids=type
)
def test_failures_in_a_row_set_aside(error: PolyheadClientError) -> None:
    """One failure may come from the text; several in a row set the replica aside."""
    replicas = Replicas(["a:1", "b:1"])
    first = replicas.all[0]
    for number in range(FAILURES_ASIDE):
        assert first.aside_until == 0.0, number
        replicas.enter(first)
        replicas.give_back(first, error, answered=False)
    assert {answer(replicas) for _ in range(4)} == {"b:1"}


def test_overload_sets_nobody_aside_unless_asked_to(replicas: Replicas) -> None:
    """A replica that sheds load is not set aside, unless it names a time."""
    busy = ServerOverloadedError("busy")
    first = replicas.take()
    replicas.give_back(first, busy, answered=False)
    assert first.aside_until == 0.0
    busy.retry_after_s = 5.0
    replicas.enter(first)
    replicas.give_back(first, busy, answered=False)
    assert first.address not in {answer(replicas) for _ in range(9)}


def test_all_aside_still_gives_one(replicas: Replicas) -> None:
    """If all replicas are set aside, the one whose time ends first is asked: the client never refuses by itself."""
    for _ in range(3):
        answer(replicas, LOST)
    first = min(replicas.all, key=lambda one: one.aside_until)
    assert answer(replicas, LOST) == first.address


def test_giving_up_counts_as_nothing(replicas: Replicas) -> None:
    """A caller that gives up does not count against the replica."""
    replica = replicas.take()
    replicas.give_back(replica, None, answered=False)
    assert (replica.outstanding, replica.failures) == (0, 0)
