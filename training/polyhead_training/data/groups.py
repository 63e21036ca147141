"""Groups, such as sources, customers or authors: what a cell names, and the split that has no group in two parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_rows.spelling import shortened
from polyhead_training.data.scalars import evened, label_text, whole_number
from polyhead_training.errors import BadRowError

TRIED = 200  # groups of which all sums are tried, so that a part is as near to its share as they allow
NO_GROUP = -1


def group_name(value: Any, place: str, column: str) -> str | None:
    """The group that a cell names, the same in every format and without blanks around it; None for an empty cell.

    Raises:
        BadRowError: the cell is a list or an object.
    """
    if isinstance(value, list | dict | set):
        raise BadRowError(f"{place}: column {column!r}: a group is a text or a number, got {shortened(repr(value))}")
    return None if value is None else whole_number(evened(label_text(value, place))) or None


def hold_out_groups(
    groups: NDArray[np.int64], places: NDArray[np.float64], shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """Train, and one split per share, each of whole groups. The order of the rows changes nothing.

    Test takes groups of low hashes, validation those of high ones, each as near to its share as whole groups allow.
    Each has at least one group if there is one left. Rows without a group are in train.

    Args:
        groups: the number of each row's group, from 0; `NO_GROUP` if it has none.
        places: a hash of each row's group.
    """
    sizes = np.bincount(groups[groups >= 0])
    place_of = np.zeros(len(sizes))
    place_of[groups[groups >= 0]] = places[groups >= 0]
    left = [group for group in np.argsort(place_of).tolist() if sizes[group]]  # the lowest hash first
    held: dict[str, NDArray[np.int64]] = {}
    for name, step in (("test", 1), ("validation", -1)):
        if name in shares:
            order = left[::step]
            taken = {order[i] for i in nearest_sum(sizes[order].tolist(), shares[name] * len(groups))}
            left = [group for group in left if group not in taken]
            held[name] = np.flatnonzero(np.isin(groups, list(taken)))
    return {"train": np.flatnonzero(np.isin(groups, [*left, NO_GROUP]))} | held


def nearest_sum(sizes: Sequence[int], wanted: float) -> list[int]:
    """Positions of sizes, at least one if there is one, whose sum is as near as possible to `wanted`.

    Sizes that fit are taken from the beginning. Of the last `TRIED`, all sums are tried, as bits of a number.
    """
    taken = []
    first = max(len(sizes) - TRIED, 0)
    for place in range(first):
        if sizes[place] <= wanted:
            taken.append(place)
            wanted -= sizes[place]
    if first == len(sizes):
        return taken
    most = int(max(2 * wanted, min(sizes[first:]))) + 1
    sums = [1]  # bit n is set if n is a sum of the sizes so far
    for size in sizes[first:]:
        sums.append((sums[-1] | sums[-1] << size) & ((1 << most + 1) - 1))
    found = sums[-1] if taken else sums[-1] & ~1
    edge = int(wanted) + 1
    below, above = (found & ((1 << edge) - 1)).bit_length() - 1, found >> edge
    best = below
    if above:
        over = edge + (above & -above).bit_length() - 1
        best = over if below < 0 or over - wanted < wanted - below else below
    for place in range(len(sizes) - 1, first - 1, -1):
        if not sums[place - first] >> best & 1:  # without this size, the sum cannot be reached
            taken.append(place)
            best -= sizes[place]
    return sorted(taken)
