"""Answers of a model to the test rows, as a file, and the thresholds of a peer's multi_label heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.05, 0.9, 35)
SCORES, CHOSEN, INSIDE, OUTSIDE = "scores", "chosen", "inside", "outside"


@dataclass(frozen=True)
class Answer:
    """The answers of one head to all test rows.

    Attributes:
        scores: ``(rows, labels)``, in the order of the head's labels; of a regression its numbers ``(rows, 1)``.
        chosen: the answered labels, 0/1 ``(rows, labels)``; ``(rows, 0)`` of a regression.
    """

    scores: NDArray[np.float32]
    chosen: NDArray[np.int8]


@dataclass
class Answers:
    """The answers of all heads.

    Attributes:
        inside, outside: of texts that belong to a label and of texts that belong to none: how sure the model is.
    """

    heads: dict[str, Answer] = field(default_factory=dict)
    inside: NDArray[np.float32] | None = None
    outside: NDArray[np.float32] | None = None

    def write(self, path: Path) -> None:
        """Writes an ``.npz``."""
        arrays: dict[str, Any] = {}
        for name, answer in self.heads.items():
            arrays |= {f"{name}/{SCORES}": answer.scores, f"{name}/{CHOSEN}": answer.chosen}
        if self.inside is not None and self.outside is not None:
            arrays |= {INSIDE: self.inside, OUTSIDE: self.outside}
        np.savez_compressed(path, **arrays)


def read_answers(path: Path) -> Answers:
    """Reads what `Answers.write` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        names = [key.rpartition("/")[0] for key in arrays.files if key.endswith(f"/{SCORES}")]
        heads = {name: Answer(arrays[f"{name}/{SCORES}"], arrays[f"{name}/{CHOSEN}"]) for name in names}
        sure = {name: arrays[name] for name in (INSIDE, OUTSIDE) if name in arrays.files}
    return Answers(heads, sure.get(INSIDE), sure.get(OUTSIDE))


def one_of(scores: NDArray[Any], best: NDArray[np.intp] | None = None) -> Answer:
    """The label with the best score of each row, or these labels."""
    best = scores.argmax(axis=1) if best is None else best
    chosen = np.equal(best[:, None], np.arange(scores.shape[1]))
    return Answer(scores.astype(np.float32), chosen.astype(np.int8))


def above(scores: NDArray[Any], thresholds: NDArray[np.float64]) -> Answer:
    """The labels of each row whose score is at least their threshold."""
    return Answer(scores.astype(np.float32), (scores >= thresholds).astype(np.int8))


def numbers(values: NDArray[Any]) -> Answer:
    """The answers of a regression."""
    return Answer(values.astype(np.float32)[:, None], np.empty((len(values), 0), np.int8))


def choose_thresholds(scores: NDArray[Any], true: NDArray[np.int8]) -> tuple[NDArray[np.float64], float]:
    """One threshold for all labels or one per label, whichever has the better micro F1 on rows that did not choose it.

    Args:
        scores, true: of validation rows ``(rows, labels)``.

    Returns:
        The thresholds ``(labels,)``, and this micro F1: each half of the rows is answered with what the other half
        chose.
    """
    counts = _counts(scores, true)  # of all rows
    odd = _counts(scores[1::2], true[1::2])
    even = {name: counts[name] - odd[name] for name in counts}
    found = {}
    for is_shared in (True, False):
        sums = _at(even, _best(odd, is_shared)) + _at(odd, _best(even, is_shared))
        found[is_shared] = float(2 * sums[0] / max(sums[1], 1))
    is_shared = found[True] >= found[False]
    return THRESHOLDS[_best(counts, is_shared)], found[is_shared]


def _counts(scores: NDArray[Any], true: NDArray[np.int8]) -> dict[str, NDArray[np.int64]]:
    """Per threshold and label ``(thresholds, labels)``: right answers, and answers plus true labels."""
    answered = [scores >= threshold for threshold in THRESHOLDS]
    right = np.stack([(chosen & (true > 0)).sum(axis=0) for chosen in answered])
    return {"right": right, "all": np.stack([chosen.sum(axis=0) for chosen in answered]) + true.sum(axis=0)}


def _best(counts: dict[str, NDArray[np.int64]], is_shared: bool) -> NDArray[np.intp]:
    """The index of the best threshold of each label."""
    right, both = counts["right"], counts["all"]
    if is_shared:
        best = int((2 * right.sum(axis=1) / np.maximum(both.sum(axis=1), 1)).argmax())
        return np.full(right.shape[1], best)
    return np.asarray((2 * right / np.maximum(both, 1)).argmax(axis=0))


def _at(counts: dict[str, NDArray[np.int64]], best: NDArray[np.intp]) -> NDArray[np.int64]:
    """Right answers, and answers plus true labels, with these thresholds."""
    columns = np.arange(len(best))
    return np.array([counts["right"][best, columns].sum(), counts["all"][best, columns].sum()])
