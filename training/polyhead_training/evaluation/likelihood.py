"""The negative log-likelihood of a head's labels, and on which of the validation rows it is fitted and judged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from polyhead.schema import Head, HeadKind
from polyhead_training.evaluation.metrics import Labels

FOLDS = 5
MOST_LOGITS, FEWEST_ROWS = 1_000_000, 1000  # something is fitted on about so many logits, if these are so many rows


def folds_of(rows: int) -> NDArray[np.intp]:
    """The fold of each row, drawn at random because rows may be sorted by label."""
    fold = np.empty(rows, np.intp)
    fold[np.random.default_rng(0).permutation(rows)] = np.arange(rows) % FOLDS
    return fold


def some_rows(logits: NDArray[np.float32]) -> slice:
    """Rows that are enough to fit one or two numbers."""
    return slice(None, None, max(1, min(logits.size // MOST_LOGITS, len(logits) // FEWEST_ROWS)))


def log_loss_of(head: Head, labels: Labels) -> Callable[[NDArray[np.floating]], float]:
    """The mean over rows of the negative log-likelihood, which for multi_label is a mean over labels too, of logits.

    It is computed in the logits' precision, because there may be millions, and summed in float64.

    Args:
        labels: known ones of a single_label or multi_label head.
    """
    if head.kind == HeadKind.SINGLE_LABEL:
        rows, classes = np.arange(len(labels)), labels[:, 0].astype(np.intp)
        return lambda logits: float(-log_softmax(logits, axis=1)[rows, classes].mean(dtype=np.float64))
    sign = np.where(labels == 1, np.float32(-1), np.float32(1))

    def loss(logits: NDArray[np.floating]) -> float:
        signed = sign * logits
        return float((np.maximum(signed, 0) + np.log1p(np.exp(-np.abs(signed)))).mean(dtype=np.float64))

    return loss
