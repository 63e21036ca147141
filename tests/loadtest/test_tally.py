"""What is counted, and how counts travel."""

from __future__ import annotations

import random
import time

import msgpack
import pytest

from loadtest.tally import Latencies, RequestOutcome, Tally


def test_only_right_answers_count_as_texts() -> None:
    """A wrong answer is a mismatch and neither text nor token; an error is neither answered nor fast, and slow."""
    tally = Tally()
    tally.add(RequestOutcome.RIGHT, 3, 30, 10.0, ended=100.5)
    tally.add(RequestOutcome.MISMATCH, 3, 30, 10.0, ended=100.6)
    tally.add(RequestOutcome.FOREIGN, 3, 30, 10.0, ended=101.1)
    tally.add(RequestOutcome.REFUSED, 3, 30, 0.01, ended=101.2)
    tally.add(RequestOutcome.FAILED, 3, 30, 0.01, ended=101.2)
    tally.add(RequestOutcome.REFUSED, 3, 30, 4000.0, ended=106.0)
    tally.add(RequestOutcome.TIMEOUT, 3, 30, 5000.0, ended=107.0)
    total = tally.total()
    assert (total.requests, total.texts, total.tokens) == (7, 3, 30)
    assert (total.mismatches, total.errors, total.refused, total.slow) == (2, 2, 2, 4)
    assert total.latencies.total() == 5  # refusing at once would make a server look fast, refusing late does not
    assert total.latencies.percentile(1.0) == pytest.approx(5000, rel=0.01)
    assert tally.began == pytest.approx(100.49)
    assert tally.ended == 107.0


def test_counts_of_a_time() -> None:
    """Between two times lie the requests that ended in the whole seconds from the first to before the second."""
    tally = Tally()
    for ended in (9.9, 10.0, 10.9, 11.0, 12.5):
        tally.add(RequestOutcome.RIGHT, 1, 1, 1.0, ended)
    assert tally.between(10.0, 12.0).texts == 3
    assert tally.between(9.5, 11.0).texts == 2


def test_reports_add_up() -> None:
    """Reports of two workers, sent as locust sends them, add up to all requests, each once."""
    workers, master = (Tally(), Tally()), Tally()
    for place in range(10):
        workers[place % 2].add(RequestOutcome.RIGHT, 2, 7, 5.0 + place, ended=50.0 + place)
        workers[place % 2].lateness.add(0.5)
        if place % 3 == 0:
            for worker in workers:
                message = msgpack.unpackb(msgpack.packb(worker.drain()), strict_map_key=False)
                master.merge(Tally.from_message(message))
    assert master.total().texts == 20
    assert master.total().tokens == 70
    assert (master.total().max_ms, master.total().slow) == (14.0, 0)
    assert master.lateness.total() == 10
    assert master.began == pytest.approx(49.995)
    assert master.ended == 59.0
    assert workers[0].total().requests == workers[1].total().requests == 0


def test_outages_of_workers_are_joined() -> None:
    """Outages that overlap count once, and one that lasts over several reports is whole."""
    workers, master = (Tally(), Tally()), Tally()
    workers[0].outages.lost(time.time() - 3.0)
    for worker in workers:
        worker.outages.lost(time.time() - 2.0)
    for worker in (*workers, *workers):
        message = msgpack.unpackb(msgpack.packb(worker.drain()), strict_map_key=False)
        master.merge(Tally.from_message(message))
    assert master.outages.seconds(time.time()) == pytest.approx(3.0, abs=0.5)
    workers[0].outages.answered(time.time())
    assert workers[0].outages.since is None


def test_percentiles_are_exact_to_a_hundredth() -> None:
    """Percentiles and mean of many latencies, from microseconds to minutes, are within 1 % of the true ones."""
    draw = random.Random(1)
    true = sorted(10 ** draw.uniform(-2, 5) for _ in range(5000))
    found = Latencies()
    for ms in true:
        found.add(ms)
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        assert found.percentile(share) == pytest.approx(true[round(share * 5000) - 1], rel=0.01)
    assert found.mean() == pytest.approx(sum(true) / 5000, rel=0.01)


def test_merging_is_adding() -> None:
    """Two workers' latencies put together are those of one that saw all."""
    parts, whole = (Latencies(), Latencies()), Latencies()
    for place in range(1, 100):
        parts[place % 2].add(place)
        whole.add(place)
    parts[0].update(parts[1])
    assert parts[0] == whole
    assert whole.total() == 99


def test_nothing_measured() -> None:
    """Without a latency there is no percentile and no mean; one that is not positive counts as the smallest."""
    found = Latencies()
    assert (found.percentile(0.5), found.mean(), found.total()) == (None, None, 0)
    found.add(0.0)
    assert found.percentile(0.99) == pytest.approx(0.001, rel=0.01)
