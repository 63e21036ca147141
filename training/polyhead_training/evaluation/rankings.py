"""AUROC and average precision of many labels at once: the numbers of scikit-learn, which computes label by label.

Both follow from counts per positive row: how many rows of its label have a lower score, and how many an equal one. All
labels are sorted and searched together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from polyhead.decode import Scores

MOST_SCORES = 2**24  # that are sorted at a time, so that the copy stays small


def rankings_of_labels(true: NDArray[np.int8], scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC and average precision of each label ``(labels,)``.

    Args:
        true: 0/1 ``(rows, labels)``; each label has positive and negative rows.
        scores: ``(rows, labels)``.
    """
    parts = [_rankings(true[:, part], scores[:, part]) for part in _parts(*true.shape)]
    auroc, average_precision = zip(*parts, strict=True)
    return np.concatenate(auroc), np.concatenate(average_precision)


def _parts(rows: int, labels: int) -> Iterator[slice]:
    step = max(MOST_SCORES // max(rows, 1), 1)
    return (slice(start, start + step) for start in range(0, labels, step))


def _rankings(true: NDArray[np.int8], scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, labels = true.shape
    label, row = np.nonzero(true.T)  # of each positive, label by label
    positives = np.bincount(label, minlength=labels)
    value = scores[row, label]
    order = np.lexsort((value, label))
    label, value = label[order], value[order]
    everything = np.sort(scores.T, axis=1)  # (labels, rows)
    below, at_most = (_count(everything, label, value, side) for side in ("left", "right"))
    first = (np.cumsum(positives) - positives)[label]  # of the label, among the positives
    positives_below, positives_at_most = _places(label, value, first)
    # Negatives below a positive are pairs in order; equal ones count half.
    negatives_below, negatives_at_most = below - positives_below, at_most - positives_at_most
    pairs = np.bincount(label, (negatives_below + negatives_at_most) / 2, minlength=labels)
    auroc = pairs / (positives * (rows - positives))
    precision = (positives[label] - positives_below) / (rows - below)  # if the threshold is the positive's score
    average_precision = np.bincount(label, precision, minlength=labels) / positives
    return auroc, average_precision


def _places(
    label: NDArray[np.intp], value: NDArray[np.float32], first: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For sorted positives: how many positives of the same label are below, and how many are not above."""
    place = np.arange(len(label))
    is_new = np.ones(len(label) + 1, dtype=bool)
    is_new[1:-1] = (label[1:] != label[:-1]) | (value[1:] != value[:-1])
    starts = np.flatnonzero(is_new)
    group = np.cumsum(is_new[:-1]) - 1 if len(label) else place
    return starts[group] - first, starts[group + 1] - first


def _count(
    everything: NDArray[np.float32], label: NDArray[np.intp], value: NDArray[np.float32], side: str
) -> NDArray[np.intp]:
    """`numpy.searchsorted` of each value in the row of its label: a binary search of all values at once."""
    low = np.zeros(len(label), dtype=np.intp)
    high = np.full(len(label), everything.shape[1], dtype=np.intp)
    while (is_open := low < high).any():
        middle = (low + high) // 2
        found = everything[label, np.minimum(middle, everything.shape[1] - 1)]
        goes_up = is_open & ((found < value) if side == "left" else (found <= value))
        low, high = np.where(goes_up, middle + 1, low), np.where(is_open & ~goes_up, middle, high)
    return low
