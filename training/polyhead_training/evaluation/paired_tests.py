"""Paired tests of two models on the same rows: is a difference more than chance?

Accuracy is compared with McNemar's exact test (McNemar 1947) and the interval of Bonett and Price (2012). Micro F1 and
mean absolute error are compared with a permutation test, which exchanges the two answers of each row at random (Noreen
1989; Yeh 2000), and a paired bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from polyhead_training.evaluation.headline import NORMAL, Parts, ratio

SEED = 0
MOST_DRAWS, FEWEST_DRAWS = 9_999, 999
MOST_WORK = 50_000_000  # draws times kinds of rows
SMALL = 1e-12  # two differences of the same sums may differ by rounding


@dataclass(frozen=True)
class PairedTest:
    """The second model's score minus the first one's.

    Attributes:
        low, high: the difference's 95 % interval.
        p: the chance of at least this difference, in any direction, if both models were equally good.
    """

    name: str
    rows: int
    difference: float
    low: float
    high: float
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> PairedTest:
    """Compares two models by the rows in which just one of them is right.

    Args:
        first, second: whether each row's answer is right.
    """
    rows = len(first)
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    lost_share, won_share = (lost + 1) / (rows + 2), (won + 1) / (rows + 2)
    middle = won_share - lost_share
    half = NORMAL * np.sqrt((won_share + lost_share - middle**2) / (rows + 2))
    low, high = max(float(middle - half), -1.0), min(float(middle + half), 1.0)
    return PairedTest("McNemar's exact test", rows, (won - lost) / rows, low, high, p)


def permutation(first: Parts, second: Parts) -> PairedTest:
    """Compares two ratios of sums, such as F1 and mean error, by the parts that each row adds to them.

    Rows with the same parts are drawn together: how many of them are exchanged is binomial, how often the bootstrap
    draws them is multinomial.
    """
    kinds, counts = np.unique(np.hstack([first, second]), axis=0, return_counts=True)
    rows = len(first)
    draws = int(np.clip(MOST_WORK // len(kinds), FEWEST_DRAWS, MOST_DRAWS))
    difference = float(_difference(counts[None].astype(np.float64) @ kinds)[0])
    random = np.random.default_rng(SEED)
    extreme, found = 0, []
    batch = max(MOST_WORK // 10 // len(kinds), 1)
    swapped_kinds = kinds[:, [2, 3, 0, 1]]
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        swapped = random.binomial(counts, 0.5, (size, len(kinds)))
        mixed = _difference((counts - swapped) @ kinds + swapped @ swapped_kinds)
        extreme += int((np.abs(mixed) >= abs(difference) - SMALL).sum())
        found.append(_difference(random.multinomial(rows, counts / rows, size) @ kinds))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    p = (1 + extreme) / (1 + draws)
    return PairedTest(f"permutation test, {draws:,} draws", rows, difference, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number, so that one of them is below 0.05 by chance in 5 % of cases (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    result = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[place], 1.0))
        result[place] = largest
    return [float(p) for p in result]


def _difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return ratio(sums[:, 2:]) - ratio(sums[:, :2])
