"""Held-out rows stay held out as data grows, classes keep their shares, and overlaps are counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyhead_training.data.splits import find_overlaps, hold_out_by_hash, hold_out_stratified
from polyhead_training.errors import DataError

PLACES = st.lists(st.floats(0, 1, exclude_max=True), max_size=50).map(np.array)
SHARES = st.fixed_dictionaries({}, optional={"validation": st.floats(0.01, 0.5), "test": st.floats(0.01, 0.49)})


def side_of(parts: dict[str, NDArray[np.int64]]) -> dict[int, str]:
    """Each row's split."""
    return {int(row): name for name, rows in parts.items() for row in rows}


@given(PLACES, PLACES, SHARES)
def test_more_rows_move_none(old: NDArray[np.float64], new: NDArray[np.float64], shares: dict[str, float]) -> None:
    """Every row is in one split, and stays there whatever rows come after it."""
    before = side_of(hold_out_by_hash(old, shares))
    after = side_of(hold_out_by_hash(np.concatenate([old, new]), shares))
    assert set(before) == set(range(len(old)))
    assert set(after) == set(range(len(old) + len(new)))
    assert before == {row: after[row] for row in before}


@given(PLACES, st.floats(0.01, 0.4), st.floats(0.01, 0.5), st.floats(0, 0.09))
def test_larger_shares_take_from_train_alone(
    places: NDArray[np.float64], test: float, validation: float, more: float
) -> None:
    """No row moves between validation and test, nor back into train, when a share grows."""
    before = side_of(hold_out_by_hash(places, {"validation": validation, "test": test}))
    for grown in ({"validation": validation + more, "test": test}, {"validation": validation, "test": test + more}):
        after = side_of(hold_out_by_hash(places, grown))
        assert all(after[row] == side for row, side in before.items() if side != "train")


def test_hashes_give_the_shares() -> None:
    """Of evenly spread hashes, each split takes its share."""
    parts = hold_out_by_hash(np.arange(1000) / 1000, {"validation": 0.25, "test": 0.1})
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 650, "test": 100, "validation": 250}


def test_classes_keep_their_shares() -> None:
    """Each split has every class in proportion; the same seed gives the same split, another seed another."""
    keys, classes = np.arange(1000), np.repeat([0, 1, 2], [700, 200, 100])
    parts = hold_out_stratified(keys, classes, {"validation": 0.2, "test": 0.1}, seed=3)
    assert {name: np.bincount(classes[rows]).tolist() for name, rows in parts.items()} == {
        "train": [490, 140, 70], "test": [70, 20, 10], "validation": [140, 40, 20],
    }  # fmt: skip
    again = hold_out_stratified(keys, classes, {"validation": 0.2, "test": 0.1}, seed=3)
    other = hold_out_stratified(keys, classes, {"validation": 0.2, "test": 0.1}, seed=4)
    assert side_of(again) == side_of(parts) != side_of(other)


@given(st.lists(st.integers(0, 30), min_size=60, max_size=60), st.integers(0, 5))
def test_equal_texts_stay_together(keys: list[int], seed: int) -> None:
    """A stratified split makes no leaks either, and loses no row."""
    classes = np.array([key % 2 for key in keys])
    try:
        parts = hold_out_stratified(np.array(keys), classes, {"validation": 0.3}, seed)
    except DataError:
        assert len(set(keys)) < 8  # fewer rows held out than classes
        return
    assert set(side_of(parts)) == set(range(60))
    assert not {keys[row] for row in parts["train"]} & {keys[row] for row in parts["validation"]}


def test_what_is_alone_in_its_class_is_trained_on() -> None:
    """A class of one row cannot be split, and is no error."""
    classes = np.array([0] * 50 + [1] * 50 + [2])
    parts = hold_out_stratified(np.arange(101), classes, {"validation": 0.1}, seed=0)
    assert 100 in parts["train"]


def test_too_many_classes_are_an_error() -> None:
    """Where a split cannot hold a row of each class, the line names the split and how many there are."""
    with pytest.raises(DataError, match=r"'stratified': validation cannot be held out .*number of classes = 20"):
        hold_out_stratified(np.arange(40), np.arange(40) % 20, {"validation": 0.1}, seed=0)


def test_overlaps_are_counted_by_pair() -> None:
    """How many rows of the later split have the text of one in the earlier; clean pairs are not named."""
    keys = {"train": np.array([1, 2, 3]), "validation": np.array([2, 2, 9, 4]), "test": np.array([9, 8])}
    assert find_overlaps(keys) == {("validation", "train"): 2, ("test", "validation"): 1}
