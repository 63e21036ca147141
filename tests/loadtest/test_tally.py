"""What is counted, and how counts travel."""

from __future__ import annotations

import msgpack
import pytest

from loadtest.tally import Outcome, Tally


def test_only_right_answers_count_as_texts() -> None:
    """A wrong answer is a mismatch and neither text nor token; an error is neither answered nor fast."""
    tally = Tally()
    tally.add(Outcome.RIGHT, 3, 30, 10.0, ended=100.5)
    tally.add(Outcome.MISMATCH, 3, 30, 10.0, ended=100.6)
    tally.add(Outcome.FOREIGN, 3, 30, 10.0, ended=101.1)
    tally.add(Outcome.REFUSED, 3, 30, 0.01, ended=101.2)
    tally.add(Outcome.TIMEOUT, 3, 30, 5000.0, ended=107.0)
    total = tally.total()
    assert (total.requests, total.texts, total.tokens) == (5, 3, 30)
    assert (total.mismatches, total.errors) == (2, 2)
    assert len(total.latencies) == 4  # refusing at once would make a server look fast
    assert total.latencies.percentile(1.0) == pytest.approx(5000, rel=0.01)
    assert tally.began == pytest.approx(100.49)
    assert tally.ended == 107.0


def test_counts_of_a_time() -> None:
    """Between two times lie the requests that ended in the whole seconds from the first to before the second."""
    tally = Tally()
    for ended in (9.9, 10.0, 10.9, 11.0, 12.5):
        tally.add(Outcome.RIGHT, 1, 1, 1.0, ended)
    assert tally.between(10.0, 12.0).texts == 3
    assert tally.between(9.5, 11.0).texts == 2


def test_reports_add_up() -> None:
    """Reports of two workers, sent as locust sends them, add up to all requests, each once."""
    workers, master = (Tally(), Tally()), Tally()
    for place in range(10):
        workers[place % 2].add(Outcome.RIGHT, 2, 7, 5.0 + place, ended=50.0 + place)
        workers[place % 2].lateness.add(0.5)
        if place % 3 == 0:
            for worker in workers:
                message = msgpack.unpackb(msgpack.packb(worker.drain()), strict_map_key=False)
                master.merge(Tally.from_message(message))
    assert master.total().texts == 20
    assert master.total().tokens == 70
    assert len(master.lateness) == 10
    assert master.began == pytest.approx(49.995)
    assert master.ended == 59.0
    assert workers[0].total().requests == workers[1].total().requests == 0
