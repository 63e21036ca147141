"""The queue of texts that wait for their scores: order, fairness, equal texts, deadlines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from polyhead.encode import EncodedText
from polyhead.text_queue import ScoreRequest, TextQueue, WaitingText

BUDGET, ENOUGH = 64, 16


def request_of(*lengths: int, arrived: float = 0.0, first: int = 0, timeout_s: float | None = None) -> ScoreRequest:
    """A request whose texts have these lengths, and other tokens than those of another `first`."""
    encoded = [EncodedText([first, *range(1, length)]) for length in lengths]
    return ScoreRequest(encoded, 1, lambda: None, arrived=arrived, timeout_s=timeout_s, default_timeout_s=10)


def lengths(texts: Sequence[WaitingText]) -> list[int]:
    """Tokens per text."""
    return [text.tokens for text in texts]


def take_all(queue: TextQueue) -> list[list[int]]:
    """The lengths of all micro-batches, until nothing waits."""
    found = []
    while queue.rows:
        found.append(lengths(queue.take()))
    return found


def test_short_texts_come_first() -> None:
    """While no text is due, the shortest are taken, up to the budget."""
    queue = TextQueue(BUDGET, ENOUGH)
    queue.add(request_of(60, 20, 30, 12))
    assert lengths(queue.take()) == [12, 20, 30]
    assert lengths(queue.take()) == [60]


def test_a_long_text_does_not_hold_up_short_ones() -> None:
    """A micro-batch that has enough tokens takes no text that is much longer than its first."""
    queue = TextQueue(BUDGET, ENOUGH)
    queue.add(request_of(40, 8, 9))
    assert take_all(queue) == [[8, 9], [40]]


def test_a_text_over_the_budget_stands_alone() -> None:
    """A text with more tokens than a micro-batch may have is taken alone."""
    queue = TextQueue(BUDGET, ENOUGH)
    queue.add(request_of(100, 90))
    assert take_all(queue) == [[90], [100]]


def test_equal_texts_are_taken_once() -> None:
    """Equal tokens of several requests are one waiting text with several places."""
    queue = TextQueue(BUDGET, ENOUGH)
    first, second = request_of(8, 8), request_of(8)
    queue.add(first)
    queue.add(second)
    assert (queue.rows, queue.tokens) == (3, 8)
    (text,) = queue.take()
    assert text.places == [(first, 0), (first, 1), (second, 0)]
    assert (queue.rows, queue.tokens) == (0, 0)


def test_a_taken_text_is_no_longer_shared() -> None:
    """A text that arrives while an equal one is computed waits for itself."""
    queue = TextQueue(BUDGET, ENOUGH)
    queue.add(request_of(8))
    queue.take()
    queue.add(request_of(8))
    assert take_all(queue) == [[8]]


def test_a_removed_request_leaves_equal_texts_of_others() -> None:
    """Removing one request keeps what another one waits for."""
    queue = TextQueue(BUDGET, ENOUGH)
    gone, other = request_of(8, 9), request_of(8)
    queue.add(gone)
    queue.add(other)
    queue.remove(gone)
    assert (queue.rows, queue.tokens) == (1, 8)
    (text,) = queue.take()
    assert text.places == [(other, 0)]


def test_unreadable_texts_do_not_wait() -> None:
    """A text with an error is never taken."""
    queue = TextQueue(BUDGET, ENOUGH)
    queue.add(ScoreRequest([EncodedText((), error="blank")], 1, lambda: None))
    assert queue.rows == 0


def test_requests_expire_before_they_begin() -> None:
    """Without a timeout of its own, a request expires only while none of its texts has begun."""
    queue = TextQueue(BUDGET, ENOUGH)
    begun, waiting, own = request_of(8, 9, 60), request_of(50, first=1), request_of(61, first=2, timeout_s=5)
    for request in (begun, waiting, own):
        queue.add(request)
    assert lengths(queue.take()) == [8, 9]
    assert queue.expired(5) == []
    assert queue.expired(5.1) == [own]
    assert queue.expired(10.1) == [waiting]
    assert take_all(queue) == [[60]]


def test_a_timeout_of_its_own_drops_what_has_not_begun() -> None:
    """A caller that has stopped waiting gets nothing more computed, even if its request has begun."""
    queue = TextQueue(BUDGET, ENOUGH)
    request = request_of(8, 9, 60, timeout_s=5)
    queue.add(request)
    assert lengths(queue.take()) == [8, 9]
    assert queue.expired(6) == [request]
    assert queue.rows == 0


def test_no_text_passes_a_due_one() -> None:
    """While a longer text is due, no shorter one passes between layers."""
    queue = TextQueue(BUDGET, ENOUGH)
    queue.add(request_of(40))
    queue.add(request_of(60, first=1))
    assert lengths(queue.take()) == [40]
    queue.add(request_of(4, first=2))
    assert lengths(queue.take_shorter(10)) == [4]
    queue.add(request_of(56, first=3))  # arrives and goes: the clock moves on
    assert lengths(queue.take()) == [56]
    queue.add(request_of(4, first=4))
    assert queue.left_tokens >= 100
    assert queue.take_shorter(10) == []
    assert lengths(queue.take())[0] == 60


ARRIVALS = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 90), min_size=1, max_size=4)), max_size=40)


@given(ARRIVALS)
def test_no_text_waits_twice_its_turn(arrivals: list[tuple[int, list[int]]]) -> None:
    """However texts arrive, each begins before twice the tokens are taken that waited with it, and a micro-batch."""
    queue = TextQueue(BUDGET, ENOUGH)
    limits: dict[int, list[int]] = defaultdict(list)
    seen = 0

    def step() -> None:
        nonlocal seen
        before = queue.left_tokens
        for text in queue.take():
            request, row = text.places[0]
            assert before <= limits[id(request)][row]
            seen += 1

    requests = []
    for number, (steps, sizes) in enumerate(arrivals):
        request = request_of(*sizes, first=number)
        requests.append(request)
        waited = queue.tokens
        distinct: dict[int, int] = {}
        for size in sizes:
            if size not in distinct:
                waited += size
                distinct[size] = queue.left_tokens + 2 * waited + 90
        limits[id(request)] = [distinct[size] for size in sizes]
        queue.add(request)
        for _ in range(steps):
            if queue.rows:
                step()
    while queue.rows:
        step()
    assert seen == sum(len(set(sizes)) for _, sizes in arrivals)
    assert (queue.rows, queue.tokens) == (0, 0)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40))
def test_every_text_is_taken_once_within_the_budget(sizes: list[int]) -> None:
    """All texts leave, each once; a micro-batch over the budget has one text."""
    queue = TextQueue(BUDGET, ENOUGH)
    for number, size in enumerate(sizes):
        queue.add(request_of(size, first=number))
    batches = take_all(queue)
    assert sorted(size for batch in batches for size in batch) == sorted(sizes)
    assert all(sum(batch) <= BUDGET or len(batch) == 1 for batch in batches)


def test_texts_that_leave_do_not_make_later_ones_wait() -> None:
    """A text is due by what waits before it, whatever was removed before it arrived."""
    queue = TextQueue(BUDGET, ENOUGH)
    gone = request_of(*[60] * 100)
    for row, encoded in enumerate(gone.encoded):
        encoded.token_ids[0] = 1000 + row
    queue.add(gone)
    queue.add(request_of(50))
    queue.remove(gone)
    queue.add(request_of(51))
    taken: list[int] = []
    for arrival in range(100):  # short texts never stop
        queue.add(request_of(16, first=10 + arrival))
        taken += lengths(queue.take())
    assert sum(taken[: taken.index(51)]) <= 2 * (50 + 51) + BUDGET


def test_texts_that_have_left_are_forgotten_while_shorter_ones_wait() -> None:
    """A queue that never runs empty keeps no texts, and so no requests, that were computed or removed."""
    queue = TextQueue(BUDGET, ENOUGH)
    for arrival in range(3000):
        queue.add(request_of(8, first=10_000 + arrival))
        queue.add(request_of(60, first=20_000 + arrival))
        while queue.rows > 100:
            queue.take()
    assert len(queue._by_length) <= 300
    assert len(queue._by_arrival) <= 300
