"""What it costs that texts are unlike those that were trained on: how far scores fall, and whether confidence shows it.

Two sets of rows are compared: similar ones, of the groups or the time that were trained on, and others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.decode import Scores, to_scores
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.calibration import calibrate
from polyhead_training.evaluation.headline import FEW_ROWS, NORMAL, headline_parts, ratio, standard_error
from polyhead_training.evaluation.metrics import (
    HEADLINE,
    LOWER_IS_BETTER,
    HeadAnswers,
    Labels,
    answers_of,
    decisions,
    expected_calibration_error,
)
from polyhead_training.evaluation.wording import number

Reached = Mapping[str, float]
"""``rows``, the head's main metric, its ``standard_error`` and, except of a regression, ``mean_confidence`` of the
answers, ``share_right`` of them, ``gap_error``, the standard error of the difference, and ``ece``. Unknown ones are
missing."""


@dataclass(frozen=True)
class HeadShift:
    """One head on similar rows and on others.

    Attributes:
        similar: empty if there are no similar rows.
        if_similar: what `shifted` would be if the temperature had been fitted on the similar rows; empty if unknown.
        sentences: what the difference means.
    """

    similar: Reached
    shifted: Reached
    if_similar: Reached
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``metrics.json`` has it."""
        numbers = {"similar": self.similar, "shifted": self.shifted, "if_calibrated_on_similar": self.if_similar}
        return {name: dict(found) for name, found in numbers.items()} | {"sentences": list(self.sentences)}


def reached(answers: HeadAnswers) -> dict[str, float]:
    """A head's main metric, and how sure and how right its answers are; empty without a labelled row.

    An answer of a multi_label head is a label that it gives: `share_right` is then the precision of all of them.
    """
    rows = len(answers.true)
    if not rows:
        return {}
    parts = headline_parts(answers)
    value = float(ratio(parts.sum(axis=0)))
    found = {"rows": rows, HEADLINE[answers.head.kind]: value, "standard_error": standard_error(parts)}
    confidence, right = _answered(answers)
    if len(confidence):
        gap = confidence - right
        found |= {
            "mean_confidence": float(confidence.mean()),
            "share_right": float(right.mean()),
            "gap_error": float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("nan"),
            "ece": expected_calibration_error(*decisions(answers)),
        }
    return {name: score for name, score in found.items() if np.isfinite(score)}


def reached_if_similar(
    similar: tuple[Scores, Labels], shifted: tuple[Scores, Labels], schema: Schema
) -> dict[str, Reached]:
    """By head, what the shifted rows would reach if the temperatures had been fitted on the similar rows.

    Args:
        similar, shifted: calibrated scores, and labels, of all heads.
    """
    plain = Schema([head.model_copy(update={"temperature": 1.0}) for head in schema])
    logits, labels = _logits(similar[0], schema), similar[1]
    fitted, _ = calibrate(logits, labels, plain, CalibrationConfig(thresholds="fixed"))
    answers = answers_of(to_scores(_logits(shifted[0], schema), fitted), shifted[1], fitted)
    return {part.head.name: reached(part) for part in answers if part.head.kind != HeadKind.REGRESSION}


def _logits(scores: Scores, schema: Schema) -> NDArray[np.float32]:
    """Logits that have these scores; 0 for a regression."""
    logits = np.zeros(scores.shape)
    for head in schema:
        given = scores[:, schema.columns[head.name]].astype(np.float64).clip(np.finfo(np.float32).tiny, 1 - 1e-7)
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                logits[:, schema.columns[head.name]] = head.temperature * np.log(given)
            case HeadKind.MULTI_LABEL:
                logits[:, schema.columns[head.name]] = head.temperature * (np.log(given) - np.log1p(-given))
    return logits.astype(np.float32)


def _answered(answers: HeadAnswers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confidence and truth of each answer."""
    match answers.head.kind:
        case HeadKind.SINGLE_LABEL:
            confidence, right = decisions(answers)
        case HeadKind.MULTI_LABEL:
            chosen = answers.chosen.astype(bool)
            confidence, right = answers.scores[chosen], answers.true[chosen]
        case HeadKind.REGRESSION:
            confidence, right = np.empty(0), np.empty(0)
    return confidence.astype(np.float64), right.astype(np.float64)


def head_shift(head: Head, similar: Reached, shifted: Reached, if_similar: Reached, called: str) -> HeadShift:
    """Compares the two.

    Args:
        called: what sentences call the rows of `shifted`, such as ``the newest rows``.
    """
    metric = HEADLINE[head.kind]
    sentences = []
    if metric in shifted:
        shown = f"{called}: {_scores(head, shifted)}."
        if metric in similar:
            sentences += [f"On rows like those trained on: {_scores(head, similar)}; on {shown}"]
            sentences += [_cost(metric, similar, shifted)]
        else:
            sentences += [f"On {shown}"]
        sentences += _honesty(shifted)
        if "mean_confidence" in if_similar and "ece" in shifted:
            sentences.append(
                f"Calibrated on rows like those trained on, mean confidence there would be "
                f"{number(if_similar['mean_confidence'])}, and the calibration error (ece) {number(if_similar['ece'])} "
                f"instead of {number(shifted['ece'])}."
            )
    return HeadShift(similar, shifted, if_similar, tuple(sentences))


def _scores(head: Head, found: Reached) -> str:
    metric = HEADLINE[head.kind]
    words = f"{metric} {number(found[metric])}"
    if "mean_confidence" not in found:
        return words
    right = "" if head.kind == HeadKind.SINGLE_LABEL else f", {number(found['share_right'])} of its answers right"
    return f"{words}{right}, mean confidence {number(found['mean_confidence'])}"


def _cost(metric: str, similar: Reached, shifted: Reached) -> str:
    sign = -1 if metric in LOWER_IS_BETTER else 1
    cost = sign * (similar[metric] - shifted[metric])
    margin = NORMAL * np.hypot(similar.get("standard_error", np.nan), shifted.get("standard_error", np.nan))
    if min(similar.get("rows", 0), shifted.get("rows", 0)) < FEW_ROWS or not abs(cost) > margin:
        return f"The difference of {number(abs(cost))} can be chance."
    verb = "rises" if metric in LOWER_IS_BETTER else "falls"
    return f"There {metric} {verb} by {number(cost)}." if cost > 0 else f"There {metric} is better by {number(-cost)}."


def _honesty(shifted: Reached) -> list[str]:
    if "mean_confidence" not in shifted:
        return []
    gap = shifted["mean_confidence"] - shifted["share_right"]
    if shifted.get("rows", 0) < FEW_ROWS or not abs(gap) > NORMAL * shifted.get("gap_error", np.nan):
        return ["Its confidence there is honest, as far as these rows can tell."]
    by = f"mean confidence is {number(abs(gap))} {'above' if gap > 0 else 'below'} the share of right answers"
    return [f"Its confidence there is too {'high' if gap > 0 else 'low'}: {by}."]
