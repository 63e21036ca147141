"""A head's main number: how far chance moves it, and how it stands beside answers that cost nothing.

Accuracy, micro F1 and mean absolute error are all a sum over rows divided by another sum over rows. So one formula
gives their standard error, and one test compares two models (`polyhead_training.evaluation.paired_tests`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import HeadKind
from polyhead_training.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, HeadAnswers
from polyhead_training.evaluation.wording import listed, number, quoted

NORMAL = 1.96  # standard errors on each side of a 95 % interval
LEVELS = ("good", "unclear", "bad")
MUCH = 0.1  # of the rows: if they have labels that are never answered, the head is bad, whatever its number
FEW_ROWS = 30  # below, the error of a score is itself unknown
LINEAR, MAJORITY = "linear", "majority"
# How a sentence calls them, the strongest first.
BASELINES = {LINEAR: "the linear model", MAJORITY: "the majority answer"}

Parts = NDArray[np.float64]  # (rows, 2): what each row adds to the two sums


@dataclass(frozen=True)
class HeadVerdict:
    """What a head's main number says.

    Attributes:
        level: ``good``, ``unclear`` or ``bad``.
        sentences: the first one is about the strongest baseline.
        interval: half of the number's 95 % interval; None if unknown.
    """

    level: str
    sentences: tuple[str, ...]
    interval: float | None = None


def headline_parts(answers: HeadAnswers) -> Parts:
    """The two parts of each row: right and 1; twice the right labels and all given and true labels; error and 1."""
    true, chosen = answers.true, answers.chosen.astype(np.int64)
    match answers.head.kind:
        case HeadKind.SINGLE_LABEL:
            over = (true & answers.chosen).any(axis=1)
        case HeadKind.MULTI_LABEL:
            unseen = np.zeros(len(true))
            for row, labels in answers.unseen.items():
                unseen[row] = len(set(labels))
            under = true.sum(axis=1) + chosen.sum(axis=1) + unseen
            return np.stack([2 * (true * chosen).sum(axis=1), under], axis=1).astype(np.float64)
        case HeadKind.REGRESSION:
            over = np.abs(answers.scores[:, 0].astype(np.float64) - true[:, 0])
    return np.stack([over, np.ones(len(true))], axis=1).astype(np.float64)


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first sum divided by the second one ``(..., 2)``; 0 for nothing, as scikit-learn has it for F1."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def standard_error(parts: Parts) -> float:
    """Of the ratio of the sums, by linearization (Cochran 1977, 6.3). NaN below two rows."""
    rows = len(parts)
    if rows < 2 or not parts[:, 1].any():
        return float("nan")
    left = parts[:, 0] - float(ratio(parts.sum(axis=0))) * parts[:, 1]
    return float(np.sqrt((left**2).sum() / (rows - 1) / rows) / parts[:, 1].mean())


def verdict(
    answers: HeadAnswers, metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> HeadVerdict:
    """How the main number stands beside each baseline, and which labels are never answered.

    The margin of chance is that of two independent scores. Scores on the same rows go together, so the true margin is
    smaller.
    """
    metric, rows = HEADLINE[answers.head.kind], len(answers.true)
    if metric not in metrics:
        return HeadVerdict("unclear", ("No row has a known label, so there is no score.",))
    sign = -1 if metric in LOWER_IS_BETTER else 1
    interval = NORMAL * standard_error(headline_parts(answers))
    margin = np.sqrt(2) * interval
    known = {name: baselines[name][metric] for name in BASELINES if metric in baselines.get(name, {})}
    level, sentences = "good", []
    for name, value in known.items():
        gain = sign * (metrics[metric] - value)
        words, found = _beside(gain, margin, BASELINES[name], rows)
        sentences.append(words)
        level = max(level, found, key=LEVELS.index)
    if known and level != "good":
        sentences.append("So these rows do not show that the model is worth serving.")
    if not known:
        level = "unclear"
    if never := _never_answered(answers):
        rows_of_never = answers.true[:, [answers.head.labels.index(label) for label in never]].any(axis=1).mean()
        level = "bad" if rows_of_never >= MUCH else max(level, "unclear", key=LEVELS.index)
        named = listed([quoted(label) for label in never])
        occurring = int(answers.true.any(axis=0).sum())
        sentences.append(f"Never answers {len(never)} of the {occurring} labels in these rows: {named}.")
    return HeadVerdict(level, tuple(sentences), interval if np.isfinite(interval) else None)


def measured_baselines(by_head: Iterable[Mapping[str, Any]]) -> list[str]:
    """The baselines that any of the heads has, the strongest first."""
    found = {name for baselines in by_head for name in baselines}
    return [name for name in BASELINES if name in found]


def _beside(gain: float, margin: float, named: str, rows: int) -> tuple[str, str]:
    if gain == 0:
        return f"Exactly as good as {named}.", "unclear"
    side = "Better" if gain > 0 else "Worse"
    by = f"{side} than {named} by {number(abs(gain))}"
    if rows >= FEW_ROWS and abs(gain) > margin:
        return f"{by}.", "good" if gain > 0 else "bad"
    return f"{by}, which {rows:,} row{'s' if rows != 1 else ''} cannot tell from chance.", "unclear"


def _never_answered(answers: HeadAnswers) -> list[str]:
    """Labels that occur and are in no answer, the most frequent first."""
    if answers.head.kind == HeadKind.REGRESSION:
        return []
    rows, answered = answers.true.sum(axis=0), answers.chosen.sum(axis=0)
    return [answers.head.labels[i] for i in np.argsort(-rows, kind="stable") if rows[i] and not answered[i]]
