"""Held-out rows stay held out as data grows, classes keep their shares, and overlaps are counted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyhead_training.data.splits import find_overlaps, hold_out_by_hash, hold_out_stratified

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


def pairs_of(*labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of a row and its label, for each array with a label per row."""
    return np.concatenate([np.stack([np.arange(len(one)), one], axis=1) for one in labels])


def test_classes_keep_their_shares() -> None:
    """Each split has every class in proportion; the same seed gives the same split, another seed another."""
    keys, classes = np.arange(1000), np.repeat([0, 1, 2], [700, 200, 100])
    parts = hold_out_stratified(keys, pairs_of(classes), {"validation": 0.2, "test": 0.1}, seed=3)
    assert {name: np.bincount(classes[rows]).tolist() for name, rows in parts.items()} == {
        "train": [490, 140, 70], "test": [70, 20, 10], "validation": [140, 40, 20],
    }  # fmt: skip
    again = hold_out_stratified(keys, pairs_of(classes), {"validation": 0.2, "test": 0.1}, seed=3)
    other = hold_out_stratified(keys, pairs_of(classes), {"validation": 0.2, "test": 0.1}, seed=4)
    assert side_of(again) == side_of(parts) != side_of(other)


def test_several_labels_keep_their_shares() -> None:
    """Rows with any of three labels, the rarest in 1 row of 50: each split has its share of each label, nearly."""
    draw = np.random.default_rng(0)
    matrix = draw.random((2000, 3)) < [0.4, 0.1, 0.02]
    parts = hold_out_stratified(np.arange(2000), np.argwhere(matrix), {"validation": 0.2}, seed=1)
    assert abs(len(parts["validation"]) - 400) <= 4
    wanted = 0.2 * matrix.sum(axis=0)
    assert np.abs(matrix[parts["validation"]].sum(axis=0) - wanted).max() <= 3
    assert abs(matrix[parts["validation"]].sum(axis=0) - wanted)[2] < 1  # the rarest label comes first


def test_two_heads_keep_their_shares_together() -> None:
    """A head of 2 and a head of 5 labels: both have a quarter of each label in validation."""
    two, five = np.arange(400) % 2, np.arange(400) // 80
    parts = hold_out_stratified(np.arange(400), pairs_of(two, five + 2), {"validation": 0.25}, seed=0)
    held = parts["validation"]
    assert np.bincount(two[held]).tolist() == [50, 50]
    assert np.bincount(five[held]).tolist() == [20] * 5


@given(st.lists(st.integers(0, 30), min_size=60, max_size=60), st.integers(0, 5))
def test_equal_texts_stay_together(keys: list[int], seed: int) -> None:
    """A stratified split makes no leaks either, and loses no row."""
    classes = np.array([key % 2 for key in keys])
    parts = hold_out_stratified(np.array(keys), pairs_of(classes), {"validation": 0.3}, seed)
    assert set(side_of(parts)) == set(range(60))
    assert not {keys[row] for row in parts["train"]} & {keys[row] for row in parts["validation"]}


def test_what_is_alone_in_its_class_is_trained_on() -> None:
    """A class of one row cannot be split, and is no error."""
    classes = np.array([0] * 50 + [1] * 50 + [2])
    parts = hold_out_stratified(np.arange(101), pairs_of(classes), {"validation": 0.1}, seed=0)
    assert 100 in parts["train"]


def test_many_rare_classes() -> None:
    """77 classes of four rows: validation has a tenth of the rows, one of a class at most; train has all classes."""
    classes = np.arange(308) % 77
    parts = hold_out_stratified(np.arange(308), pairs_of(classes), {"validation": 0.1}, seed=0)
    assert 28 <= len(parts["validation"]) <= 33
    assert np.bincount(classes[parts["validation"]], minlength=77).max() == 1
    assert np.bincount(classes[parts["train"]], minlength=77).min() == 3


def test_rows_without_a_label_are_shared_out() -> None:
    """Without any label, the split is a draw of the share."""
    parts = hold_out_stratified(np.arange(100), np.empty((0, 2), np.int64), {"validation": 0.3}, seed=0)
    assert len(parts["validation"]) == 30


def test_overlaps_are_counted_by_pair() -> None:
    """How many rows of the later split have the text of one in the earlier; clean pairs are not named."""
    keys = {"train": np.array([1, 2, 3]), "validation": np.array([2, 2, 9, 4]), "test": np.array([9, 8])}
    assert find_overlaps(keys) == {("validation", "train"): 2, ("test", "validation"): 1}
