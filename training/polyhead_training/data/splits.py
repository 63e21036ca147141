"""Splits: which rows are held out, which texts are on both sides, and which rows repeat others.

A split is an array of indices into staged rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray

from polyhead.schema import HeadKind
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.shift import hold_out_shifted
from polyhead_training.data.staging import Indices, Staged
from polyhead_training.errors import ConfigError

SPLITS = ("train", "validation", "test", "similar")
QUANTILES = 10  # into which the numbers of a regression are put
DEFAULT_TEST_SHARE = 0.1
ENOUGH_ROWS = 1000  # of train: with fewer, a tenth says little and is missed in training

Parts = dict[str, tuple[Staged, Indices]]
"""By split, where its rows are staged, and which of these it has."""


def split_rows(sources: Mapping[str, Staged], config: DataConfig, heads: Sequence[HeadConfig], seed: int) -> Parts:
    """The rows of each split. Splits that are not given are held out of train.

    ``similar`` holds rows of the groups or of the time that are trained on, if the other splits have other ones.

    Raises:
        DataError: the groups or times of the rows do not allow such splits.
    """
    parts = {name: (staged, np.arange(len(staged.rows))) for name, staged in sources.items()}
    whole = sources["train"]
    shares = {"validation": config.validation_share, "test": share_of_test(config, len(whole.rows))}
    shares = {name: share for name, share in shares.items() if name not in sources and share}
    if shares and len(whole.rows):  # otherwise the caller says that there are none
        held = hold_out(whole, config, heads, shares, seed)
        parts |= {name: (whole, indices) for name, indices in held.items()}
    if config.shift_column is not None and len(whole.rows):
        train = parts["train"][1]
        if share := share_of_similar(config, len(whole.rows)):
            is_similar = fractions(whole.numbers("text_key", train)) < share
            parts |= {"train": (whole, train[~is_similar]), "similar": (whole, train[is_similar])}
    return {name: parts[name] for name in SPLITS if name in parts}


def share_of_test(config: DataConfig, rows: int) -> float:
    """The share of the training rows that is held out for the test; by default a tenth if there are enough rows."""
    if config.test_share is not None:
        return config.test_share
    return min(DEFAULT_TEST_SHARE, (1 - config.validation_share) / 2) if rows >= ENOUGH_ROWS else 0.0


def share_of_similar(config: DataConfig, rows: int) -> float:
    """The share of the rows left for training that is held out to compare with; by default a tenth of enough rows."""
    if config.similar_share is not None:
        return config.similar_share
    return DEFAULT_TEST_SHARE if rows >= ENOUGH_ROWS else 0.0


def fractions(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hashes as fractions in [0, 1)."""
    return (keys.astype(np.uint64) >> np.uint64(11)).astype(np.float64) / 2**53


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
    keys: NDArray[np.int64], has: NDArray[np.int64], shares: Mapping[str, float], seed: int
) -> dict[str, Indices]:
    """Train, and one split per share, each with about the same share of every label.

    This is iterative stratification (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10): the rarest label comes
    first, and each of its rows goes where most of that label is wanted. If no split wants a whole row of the label, the
    row goes where most rows are wanted. Rows of equal `keys` stay together and count as one. A row that is alone in a
    label stays in train.

    Args:
        has: pairs of a row and a label that it has, ``(pairs, 2)``. A row may have any number of labels.
    """
    group_of = np.unique(keys, return_inverse=True)[1]
    pairs = np.unique(np.stack([group_of[has[:, 0]], has[:, 1]], axis=1), axis=0) if len(has) else has
    groups = int(group_of.max(initial=-1)) + 1
    names = ["train", *sorted(shares)]
    parts = np.array([1 - sum(shares.values()), *(shares[name] for name in names[1:])])
    sides = _iterative_sides(groups, pairs, parts, np.random.default_rng(seed))[group_of]
    return {name: np.flatnonzero(sides == side) for side, name in enumerate(names)}


def _iterative_sides(
    groups: int, pairs: NDArray[np.int64], parts: NDArray[np.float64], draw: np.random.Generator
) -> NDArray[np.int64]:
    """The side of each group; the first side is train."""
    labels = np.unique(pairs[:, 1], return_inverse=True)[1]
    width = int(labels.max(initial=-1)) + 1
    counts = np.bincount(labels, minlength=width)
    by_label = np.split(pairs[np.argsort(labels, kind="stable"), 0], np.cumsum(counts)[:-1]) if width else []
    ends = np.searchsorted(pairs[:, 0], np.arange(groups + 1))  # pairs are sorted by group
    wanted_rows = groups * parts  # (sides,)
    wanted = np.outer(parts, counts)  # (sides, labels)
    left = counts.copy()
    sides = np.full(groups, -1)

    def put(group: int, side: int) -> None:
        of_group = labels[ends[group] : ends[group + 1]]
        sides[group] = side
        wanted_rows[side] -= 1
        wanted[side, of_group] -= 1
        left[of_group] -= 1

    for group in pairs[counts[labels] == 1, 0]:
        if sides[group] < 0:
            put(group, 0)
    while left.any():
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        rest = by_label[label][sides[by_label[label]] < 0]
        for group in draw.permutation(rest):
            best = wanted[:, label].max()
            even = wanted[:, label] > best - 1e-9 if best > 1 - 1e-9 else wanted[:, label] > 1e-9
            even = even if even.any() else np.ones(len(parts), dtype=bool)
            put(group, int(np.where(even, wanted_rows / parts, -np.inf).argmax()))
    for group in draw.permutation(np.flatnonzero(sides < 0)):
        put(group, int((wanted_rows / parts).argmax()))
    return sides


def heads_to_stratify_by(config: DataConfig, heads: Sequence[HeadConfig]) -> list[int]:
    """The positions of the heads whose labels keep their shares.

    Raises:
        ConfigError: `stratify_by` names no head.
    """
    names = [head.name for head in heads]
    if config.stratify_by is None:
        return list(range(len(names)))
    if config.stratify_by not in names:
        raise ConfigError(f"data.stratify_by {config.stratify_by!r}: must be one of the heads {names}")
    return [names.index(config.stratify_by)]


def hold_out(
    staged: Staged, config: DataConfig, heads: Sequence[HeadConfig], shares: Mapping[str, float], seed: int
) -> dict[str, Indices]:
    """Train and one split per share, as the config says.

    A test split that the config does not ask for is left out if it cannot be about as large as its share, because few
    values of `split_column` or few groups or times decide about many rows.

    Raises:
        DataError: groups or times do not allow what the config asks for.
    """
    if config.shift_column is not None:
        return hold_out_shifted(staged, config, shares)
    if config.test_share is None and "test" in shares:
        others = {name: share for name, share in shares.items() if name != "test"}
        held = _hold_out(staged, config, heads, shares, seed)
        is_near = 0.5 <= len(held["test"]) / (shares["test"] * len(staged.rows)) <= 2
        return held if is_near else _hold_out(staged, config, heads, others, seed)
    return _hold_out(staged, config, heads, shares, seed)


def _hold_out(
    staged: Staged, config: DataConfig, heads: Sequence[HeadConfig], shares: Mapping[str, float], seed: int
) -> dict[str, Indices]:
    if config.split == "hash":
        return hold_out_by_hash(staged.numbers("place"), shares)
    has: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for position in heads_to_stratify_by(config, heads):
        (cells,) = staged.columns([f"cell_{position}"])
        pairs = _labels_of_rows(cells, heads[position].kind)
        pairs[:, 1] += 1 + max(int(one[:, 1].max(initial=-1)) for one in has)  # no two heads share a label
        has.append(pairs)
    return hold_out_stratified(staged.numbers("text_key"), np.concatenate(has), shares, seed)


def _labels_of_rows(cells: pyarrow.ChunkedArray, kind: HeadKind) -> NDArray[np.int64]:
    """Pairs of a row and a label. Unknown is a label too, and so are no labels and each quantile of a regression."""
    rows = np.arange(len(cells))
    if kind == HeadKind.REGRESSION:
        numbers = cells.to_numpy()
        known = ~np.isnan(numbers)
        quantiles = np.quantile(numbers[known], np.linspace(0, 1, QUANTILES + 1)[1:-1]) if known.any() else []
        edges = np.unique(np.asarray(quantiles))
        return np.stack([rows, np.where(known, np.searchsorted(edges, numbers, side="right"), QUANTILES + 1)], axis=1)
    counts = pc.list_value_length(cells).to_numpy()  # NaN where unknown
    labels = pc.list_flatten(cells).combine_chunks().dictionary_encode().indices.to_numpy()
    several = np.stack([np.repeat(rows, np.nan_to_num(counts).astype(np.int64)), labels + 2], axis=1)
    unknown, empty = rows[np.isnan(counts)], rows[counts == 0]
    alone = np.concatenate([np.stack([unknown, 0 * unknown], axis=1), np.stack([empty, 0 * empty + 1], axis=1)])
    return np.concatenate([several, alone]).astype(np.int64)


def find_overlaps(keys: Mapping[str, NDArray[np.int64]]) -> dict[tuple[str, str], int]:
    """For a split and an earlier one: how many of its rows have the same text as a row there, if any."""
    pairs = ((split, other) for other, split in combinations(keys, 2))
    found = {(split, other): int(np.isin(keys[split], keys[other]).sum()) for split, other in pairs}
    return {pair: rows for pair, rows in found.items() if rows}


def clean_train(parts: Parts, config: DataConfig) -> list[str]:
    """Counts leaks and duplicates, and removes from train what the config says."""
    keys = {name: staged.numbers("text_key", indices) for name, (staged, indices) in parts.items()}
    notes = []
    staged, train = parts["train"]
    others = [keys[name] for name in parts if name != "train"]
    leaked = np.isin(keys["train"], np.concatenate([np.empty(0, np.int64), *others]))
    for (split, other), rows in find_overlaps(keys).items():
        note = f"leak: {rows} of {len(keys[split])} {split} rows have the text of a row in {other}"
        if other == "train" and not config.drop_leaks:
            note += "; data.drop_leaks = true removes such rows from train"
        notes.append(note)
    if config.drop_leaks and leaked.any():
        notes.append(f"drop_leaks: removed {leaked.sum()} of {len(train)} rows from train")
        train = train[~leaked]
    repeats = pandas.Index(staged.numbers("text_key", train)).duplicated()
    if repeats.any():
        twins = pandas.Index(staged.numbers("row_key", train)).duplicated()
        note = f"duplicates: {repeats.sum()} of {len(train)} training rows repeat an earlier text, "
        note += f"{twins.sum()} of them with the same labels"
        if twins.any():
            note += "; these were dropped" if config.drop_duplicates else "; data.drop_duplicates = true drops these"
        notes.append(note)
        if config.drop_duplicates:
            train = train[~twins]
    parts["train"] = staged, train
    return notes
