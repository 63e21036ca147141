"""Suspects: labels in the data that are probably wrong, for people to check.

Confident learning (Northcutt et al. 2021, arXiv:1911.00068): the scores of rows that the model was not trained on say
how sure it usually is of each label. A row is suspect if the model is at least that sure of a label other than the
given one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import HeadKind
from polyhead_training.evaluation.metrics import HeadAnswers

MOST_SUSPECTS = 200  # of a head: more is no work for people
LEAST_ROWS = 5  # of a label: with fewer, nobody knows how sure the model usually is of it
SURE = 0.9  # a calibrated score from which on the model is sure, however sure it usually is
LEAST_MARGIN = 0.5  # between the scores of the proposed and the given label


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong.

    Attributes:
        index: of the text in its `Evaluation`.
        given: the label in the data; ``not LABEL`` if a multi_label head's label is not given.
        proposed: the label that the model is sure of.
        score: by how much its score is higher than that of `given`, from 0.5 to 1.
    """

    head: str
    index: int
    given: str
    proposed: str
    score: float


def find_suspects(answers: Iterable[HeadAnswers]) -> list[Suspect]:
    """The suspects of all heads, the most certain first; at most `MOST_SUSPECTS` per head.

    Args:
        answers: to rows that the model was not trained on.
    """
    found: list[Suspect] = []
    for part in answers:
        match part.head.kind:
            case HeadKind.SINGLE_LABEL:
                some = _of_single(part)
            case HeadKind.MULTI_LABEL:
                some = _of_multi(part)
            case HeadKind.REGRESSION:
                continue
        rows = np.flatnonzero(part.known)
        best = sorted(some, key=lambda suspect: -suspect.score)[:MOST_SUSPECTS]
        found += [Suspect(one.head, int(rows[one.index]), one.given, one.proposed, one.score) for one in best]
    return sorted(found, key=lambda suspect: -suspect.score)


def _of_single(answers: HeadAnswers) -> Iterable[Suspect]:
    """Rows off the diagonal of the confident joint."""
    true, scores, names = answers.true.astype(bool), answers.scores.astype(np.float64), answers.head.labels
    rows = np.flatnonzero(true.any(axis=1))  # labels that training never saw have no score
    given = true[rows].argmax(axis=1)
    proposed, margin = confident_labels(scores[rows], given)
    for row in np.flatnonzero(margin >= LEAST_MARGIN):
        yield Suspect(answers.head.name, int(rows[row]), names[given[row]], names[proposed[row]], float(margin[row]))


def _of_multi(answers: HeadAnswers) -> Iterable[Suspect]:
    """Each label is a question of its own, with the classes no and yes."""
    for label, name in enumerate(answers.head.labels):
        yes = answers.scores[:, label].astype(np.float64)
        given = answers.true[:, label].astype(np.intp)
        _, margin = confident_labels(np.stack([1 - yes, yes], axis=1), given)
        for row in np.flatnonzero(margin >= LEAST_MARGIN):
            both = (name, f"not {name}") if given[row] else (f"not {name}", name)
            yield Suspect(answers.head.name, int(row), *both, float(margin[row]))


def confident_labels(
    scores: NDArray[np.float64], given: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Per row the label with the highest score, and by how much its score exceeds that of the given label.

    The margin is 0 if the model is less sure of the label than it is on average of the rows that have it (the threshold
    of the confident joint, at most `SURE`), or if fewer than `LEAST_ROWS` rows have it.

    Args:
        scores: ``(n, labels)``.
        given: the index of each row's label.
    """
    rows = np.bincount(given, minlength=scores.shape[1])
    own = scores[np.arange(len(given)), given]
    usual = np.bincount(given, weights=own, minlength=scores.shape[1]) / np.maximum(rows, 1)
    best = scores.argmax(axis=1)
    highest = scores[np.arange(len(given)), best]
    is_confident = (highest >= np.minimum(usual[best], SURE)) & (rows[best] >= LEAST_ROWS)
    return best, np.where(is_confident, highest - own, 0.0)
