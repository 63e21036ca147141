"""Paired tests against numbers from the literature, other libraries and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from polyhead_training.evaluation.paired_tests import holm, mcnemar, permutation


def right(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that both models answer rightly, just one of them, or neither."""
    return (
        np.repeat([True, True, False, False], [both, first, second, neither]),
        np.repeat([True, False, True, False], [both, first, second, neither]),
    )


def errors(values: np.ndarray) -> np.ndarray:
    """Parts of a mean."""
    return np.stack([values, np.ones(len(values))], axis=1)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (0, 5, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (2, 6, 2 * (1 + 8 + 28) / 2**8),
        (4, 4, 1.0),
    ],
)
def test_mcnemar_is_exact(first: int, second: int, p: float) -> None:
    """P is twice the smaller binomial tail, computed by hand."""
    found = mcnemar(*right(50, first, second, 10))
    assert found.p == pytest.approx(p)
    assert found.difference == pytest.approx((second - first) / (60 + first + second))
    assert found.low <= found.difference <= found.high


def test_the_interval_is_that_of_bonett_and_price() -> None:
    """Computed by hand: 59 both, 20 first only, 4 second only, 17 neither, of 100 rows."""
    found = mcnemar(*right(59, 20, 4, 17))
    lost, won = 21 / 102, 5 / 102
    half = 1.96 * ((lost + won - (won - lost) ** 2) / 102) ** 0.5
    assert (found.low, found.high) == pytest.approx((won - lost - half, won - lost + half))
    assert found.p == pytest.approx(0.0015, abs=1e-4)  # statsmodels' mcnemar([[59, 20], [4, 17]], exact=True)


def test_a_permutation_test_agrees_with_scipy() -> None:
    """Of mean errors; the interval is near that of the paired t test."""
    random = np.random.default_rng(3)
    first = random.gamma(2, size=80)
    second = first + random.normal(-0.12, 0.5, 80)
    found = permutation(errors(first), errors(second))
    exact = scipy.stats.permutation_test(
        (second, first), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=1,
    )  # fmt: skip
    assert found.p == pytest.approx(exact.pvalue, abs=0.015)
    interval = scipy.stats.ttest_rel(second, first).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.02)
    assert found.difference == pytest.approx(second.mean() - first.mean())


def test_few_rows_give_every_exchange_its_share() -> None:
    """Three rows that all got better have 2 of 8 exchanges at least as extreme: p is a quarter."""
    found = permutation(errors(np.array([1.0, 2.0, 3.0])), errors(np.array([0.5, 1.5, 2.5])))
    assert found.p == pytest.approx(0.25, abs=0.02)


def test_f1_is_compared_as_a_whole() -> None:
    """The difference is that of scikit-learn's micro F1, and equal answers have p = 1."""
    random = np.random.default_rng(0)
    true, first, second = (random.random((3, 200, 4)) < 0.4).astype(int)
    parts = [np.stack([2 * (true * got).sum(1), true.sum(1) + got.sum(1)], 1).astype(float) for got in (first, second)]
    found = permutation(*parts)
    expected = f1_score(true, second, average="micro") - f1_score(true, first, average="micro")
    assert found.difference == pytest.approx(expected)
    assert found.low < found.difference < found.high
    assert permutation(parts[0], parts[0]).p == 1.0


def test_chance_is_rarely_called_a_difference() -> None:
    """Of pairs of equally good models, about 5 % have p below 0.05."""
    random = np.random.default_rng(1)
    below = sum(permutation(*(errors(random.normal(size=20)) for _ in range(2))).p < 0.05 for _ in range(40))
    assert below <= 8  # of a binomial with 40 draws at 0.05, 99.9 % are at most 8
    exact = sum(mcnemar(*(random.random((2, 300)) < 0.8)).p < 0.05 for _ in range(200))
    assert exact <= 22  # of a binomial with 200 draws at 0.05, 99.9 % are at most 21


def test_holm_by_hand() -> None:
    """The smallest p times all, the next times one fewer, and never below the one before; in the order given."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
