"""Splits: which rows are held out, and which texts are on both sides.

A split is an array of indices into staged rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from polyhead.errors import one_line
from polyhead.schema import HeadKind
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.staging import Indices, Staged
from polyhead_training.errors import ConfigError, DataError

DEFAULT_TEST_SHARE = 0.1
ENOUGH_ROWS = 1000  # of train: with fewer, a tenth says little and is missed in training


def share_of_test(config: DataConfig, rows: int) -> float:
    """The share of the training rows that is held out for the test; by default a tenth if there are enough rows."""
    if config.test_share is not None:
        return config.test_share
    return min(DEFAULT_TEST_SHARE, (1 - config.validation_share) / 2) if rows >= ENOUGH_ROWS else 0.0


def hold_out_by_hash(places: NDArray[np.float64], shares: Mapping[str, float]) -> dict[str, Indices]:
    """Train, and one split per share: test takes the lowest hashes, validation the highest.

    A row's split depends only on its own hash. Added rows move no row, and a change of one share does not change the
    other split.
    """
    test = places < shares.get("test", 0.0)
    validation = (places >= 1 - shares.get("validation", 0.0)) & ~test
    sides = {"train": ~test & ~validation, "validation": validation, "test": test}
    return {name: np.flatnonzero(side) for name, side in sides.items() if name == "train" or name in shares}


def hold_out_stratified(
    keys: NDArray[np.int64], classes: NDArray[np.int64], shares: Mapping[str, float], seed: int
) -> dict[str, Indices]:
    """Train, and one split per share, each with about the same share of every class.

    Rows of equal `keys` stay together and count as one, with the class of the first. A row that is alone in its class
    stays in train.

    Raises:
        DataError: a split would have fewer rows than there are classes.
    """
    _, firsts, group_of = np.unique(keys, return_index=True, return_inverse=True)
    rest, kept = np.arange(len(firsts)), 1.0
    sides = np.zeros(len(firsts), dtype=np.int64)
    names = sorted(shares)  # test before validation, so that the validation share does not move test rows
    for side, name in enumerate(names, start=1):
        of = classes[firsts[rest]]
        _, position, counts = np.unique(of, return_inverse=True, return_counts=True)
        several = counts[position] > 1
        try:
            stay, out = train_test_split(
                rest[several], test_size=shares[name] / kept, stratify=of[several], random_state=seed
            )
        except ValueError as error:
            raise DataError(f"data.split 'stratified': {name} cannot be held out ({one_line(error)})") from error
        sides[out] = side
        rest, kept = np.sort(np.concatenate([stay, rest[~several]])), kept - shares[name]
    row_sides = sides[group_of]
    return {name: np.flatnonzero(row_sides == side) for side, name in enumerate(["train", *names])}


def position_to_stratify_by(config: DataConfig, heads: Sequence[HeadConfig]) -> int:
    """The position of the head whose labels keep their shares.

    Raises:
        ConfigError: `stratify_by` names no single_label head, or no head is single_label.
    """
    candidates = {head.name: i for i, head in enumerate(heads) if head.kind == HeadKind.SINGLE_LABEL}
    name = config.stratify_by or next(iter(candidates), None)
    if name is None or name not in candidates:
        raise ConfigError(f"data.stratify_by {name!r}: must be one of the single_label heads {list(candidates)}")
    return candidates[name]


def hold_out(
    staged: Staged, config: DataConfig, heads: Sequence[HeadConfig], shares: Mapping[str, float], seed: int
) -> dict[str, Indices]:
    """Train and one split per share, as the config says.

    A test split that the config does not ask for is left out if it cannot be about as large as its share: if few values
    of `split_column` decide about many rows, or a stratified split has too many classes.
    """
    if config.test_share is None and "test" in shares:
        others = {name: share for name, share in shares.items() if name != "test"}
        try:
            held = _hold_out(staged, config, heads, shares, seed)
        except DataError:
            return _hold_out(staged, config, heads, others, seed)
        is_near = 0.5 <= len(held["test"]) / (shares["test"] * len(staged.rows)) <= 2
        return held if is_near else _hold_out(staged, config, heads, others, seed)
    return _hold_out(staged, config, heads, shares, seed)


def _hold_out(
    staged: Staged, config: DataConfig, heads: Sequence[HeadConfig], shares: Mapping[str, float], seed: int
) -> dict[str, Indices]:
    if config.split == "hash":
        return hold_out_by_hash(staged.numbers("place"), shares)
    column = f"cell_{position_to_stratify_by(config, heads)}"
    (cells,) = staged.columns([column])
    labels = pc.list_element(cells, 0).combine_chunks()
    classes = labels.dictionary_encode(null_encoding="encode").indices.to_numpy()  # no label is a class of its own
    return hold_out_stratified(staged.numbers("text_key"), classes, shares, seed)


def find_overlaps(keys: Mapping[str, NDArray[np.int64]]) -> dict[tuple[str, str], int]:
    """For a split and an earlier one: how many of its rows have the same text as a row there, if any."""
    pairs = ((split, other) for other, split in combinations(keys, 2))
    found = {(split, other): int(np.isin(keys[split], keys[other]).sum()) for split, other in pairs}
    return {pair: rows for pair, rows in found.items() if rows}
