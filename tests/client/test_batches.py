"""How texts are cut into requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead_client import UsageError
from polyhead_client.batches import HEADER_BYTES, ROW_BYTES, cut

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))


@given(TEXTS, st.integers(1, 8), st.integers(170, 400))
def test_batches_are_the_texts_within_their_limits(texts: list[str], most_texts: int, room: int) -> None:
    """No batch exceeds a limit, no batch has room for the next text, and together they are the texts in order."""
    batches = list(cut(texts, most_texts, room + HEADER_BYTES))
    assert [row.decode() for batch in batches for row in batch] == texts
    sizes = [sum(len(row) + ROW_BYTES for row in batch) for batch in batches]
    for number, batch in enumerate(batches):
        assert 1 <= len(batch) <= most_texts
        assert sizes[number] <= room
        if number + 1 < len(batches):
            following = len(batches[number + 1][0]) + ROW_BYTES
            assert len(batch) == most_texts or sizes[number] + following > room


def test_batches_read_no_further_than_they_must() -> None:
    """A batch is yielded as soon as it is full, without waiting for the next text of a live source."""
    read = []

    def texts() -> Iterator[str]:
        for number in range(10):
            read.append(number)
            yield str(number)

    batches = cut(texts(), 3, 10_000)
    assert next(batches) == [b"0", b"1", b"2"]
    assert read == [0, 1, 2]


@pytest.mark.parametrize("error", [OSError("disk"), None])
def test_what_came_before_a_fault_is_given_first(error: OSError | None) -> None:
    """The texts before a text that cannot be sent, or before an iterable fails, are not lost."""

    def texts() -> Iterator[object]:
        yield from ("a", "b", "c")
        if error:
            raise error
        yield None

    batches = cut(texts(), 2, 10_000)
    assert [next(batches), next(batches)] == [[b"a", b"b"], [b"c"]]
    with pytest.raises(OSError if error else UsageError, match="disk" if error else "text 3 is missing"):
        next(batches)
