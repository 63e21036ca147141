"""Calibration on validation rows: one temperature per head, and thresholds for the labels of multi_label heads.

They must hold on rows that they were not chosen on. So the scores before and after are cross-fitted: each fold of the
rows is judged with what the other folds chose, and what does not help there is not kept. Little evidence moves little.
The numbers behind the constants are in docs/decisions/0025-targets-and-thresholds.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from polyhead.decode import to_scores
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.likelihood import folds_of, log_loss_of, some_rows
from polyhead_training.evaluation.metrics import (
    HEADLINE,
    LOWER_IS_BETTER,
    HeadAnswers,
    Labels,
    answers_of,
    binary_log_loss,
    decisions,
    expected_calibration_error,
    levels_below,
    rejection_scores,
)
from polyhead_training.evaluation.rejection import Rejections, fit_rejections
from polyhead_training.evaluation.thresholds import fit_thresholds

# Heads that make no mistake would get lower temperatures, which also magnify float32's errors.
TEMPERATURES = (0.25, 20.0)
LOG_TEMPERATURE = 0.5  # the standard deviation that is expected of a temperature's logarithm before any row is seen
SHOWN = ("ece", "nll", "micro_f1", "macro_f1", "accuracy", "coverage", "answered_accuracy")

Shown = dict[str, dict[str, float]]


Temperatures = Literal["head", "taxonomy", "kept"]
Thresholds = Literal["label", "shared", "kept"]
TO_TRY: dict[str, tuple[Thresholds, ...]] = {"f1": ("label", "shared"), "micro_f1": ("shared",), "fixed": ()}


@dataclass(frozen=True)
class _Plan:
    """What is fitted for a head.

    A temperature of its own, one for all heads of its taxonomy, or as it is. Thresholds: one per label, one for all
    labels, or as they are.
    """

    temperature: Temperatures = "kept"
    thresholds: Thresholds = "kept"


Plans = Mapping[str, _Plan]


def calibrate(
    logits: NDArray[np.float32],
    labels: Labels,
    schema: Schema,
    config: CalibrationConfig,
    rejections: Rejections | None = None,
) -> tuple[Schema, dict[str, Any]]:
    """Fits what `config` asks for, and keeps what helps in rows that it was not fitted on.

    No head gets a worse headline metric (accuracy, micro F1) or negative log-likelihood in the cross-fitted scores.
    Rows without a label for a head do not count in it.

    Args:
        logits: ``(n, schema.width)``.
        labels: ``(n, sum of label widths)``; NaN where unknown.
        rejections: which heads reject answers, and what that is fitted for.

    Returns:
        The schema with temperatures, thresholds and bounds of rejection, fitted on all rows; and by head what was
        fitted, with the cross-fitted scores ``before`` and ``after`` and with ``notes``: what was not kept, and why.
    """
    rows = _Rows(logits, labels, schema)
    plans: Plans = {head.name: _Plan() for head in schema}
    notes: dict[str, list[str]] = {head.name: [] for head in schema}
    before = after = rows.judge(plans)
    fittable = [head for head in schema if _can_fit(head, rows.labels_of(head), notes[head.name])]
    if config.temperature and fittable:
        wanted = {**plans, **{head.name: _Plan(temperature="head") for head in fittable}}
        plans, after = _keep_temperatures(rows, wanted, before, notes)
    for thresholds in TO_TRY[config.thresholds]:
        heads = [h for h in fittable if h.kind == HeadKind.MULTI_LABEL and plans[h.name].thresholds == "kept"]
        if heads:
            wanted = {**plans, **{head.name: replace(plans[head.name], thresholds=thresholds) for head in heads}}
            plans, after = _keep_thresholds(rows, plans, wanted, after, notes)
    calibrated, answered = rows.reject(plans, rejections or {}, notes)
    summary = {}
    for head in calibrated:
        if head.kind == HeadKind.REGRESSION:
            continue
        fitted: dict[str, Any] = {"rows": len(rows.labels_of(head)), "temperature": head.temperature}
        if head.thresholds is not None:
            fitted["thresholds"] = dict(zip(head.labels, head.thresholds, strict=True))
        if head.reject_below is not None:
            fitted |= {"reject_below": head.reject_below, "reject_by": head.reject_by}
        all_answered = {"coverage": 1.0, "answered_accuracy": after[head.name].get("accuracy", 0.0)}
        rejects = head.name in answered
        summary[head.name] = fitted | {
            "before": before[head.name] | (all_answered if rejects else {}),
            "after": after[head.name] | (answered[head.name] if rejects else {}),
            "notes": notes[head.name],
        }
    return calibrated, summary


def describe_calibration(summary: Mapping[str, Any]) -> list[str]:
    """A line per head with its scores before and after, and its notes."""
    lines = []
    for name, found in summary.items():
        scores = [
            f"{key} {found['before'][key]:.3f} → {found['after'][key]:.3f}"
            for key in SHOWN
            if key in found["before"] and key in found["after"]
            if key != "micro_f1" or "accuracy" not in found["before"]  # of one label per row it is the accuracy
        ]
        if scores:
            lines.append(f"{name}, cross-fitted on {found['rows']} validation rows: {', '.join(scores)}")
        if "reject_below" in found:
            lines.append(f"{name}: rejects an answer whose {found['reject_by']} is below {found['reject_below']:.4g}")
        lines += [f"{name}: {note}" for note in found["notes"]]
    return lines


def _can_fit(head: Head, known: Labels, notes: list[str]) -> bool:
    """Whether the rows can say anything: they must differ in their labels."""
    if head.kind == HeadKind.REGRESSION:
        return False
    if len(known) and known.min() != known.max():
        return True
    if len(known):
        notes.append("nothing is fitted, because all validation rows have the same answer")
    return False


def _keep_temperatures(rows: _Rows, wanted: Plans, before: Shown, notes: dict[str, list[str]]) -> tuple[Plans, Shown]:
    """The plans without the temperatures that do not help, and their scores."""
    schema, after = rows.schema, rows.judge(wanted)
    for head in schema:
        then, now = before[head.name].get("nll", 0.0), after[head.name].get("nll", 0.0)
        if wanted[head.name].temperature == "head" and not now < then:
            wanted = {**wanted, head.name: _Plan()}
            notes[head.name].append(f"the temperature stays 1: nll {then:.3f} would become {now:.3f}")
    for root in schema.children(None):
        tree = [head.name for head in levels_below(root, schema)]
        if len(tree) == 1 or all(wanted[name].temperature == "kept" for name in tree):
            continue
        after = rows.judge(wanted)
        if not _are_worse(after, before, tree, "accuracy"):
            continue
        # The best path is the one with the highest product, so temperatures can change the labels of a taxonomy. One
        # for all its heads changes none: it divides the logarithms of all products alike.
        wanted = {**wanted, **{name: _Plan(temperature="taxonomy") for name in tree}}
        notes[root.name].append("the heads of this taxonomy share a temperature: their own would make answers worse")
        after = rows.judge(wanted)
        if _are_worse(after, before, tree, "nll") or _are_worse(after, before, tree, "accuracy"):
            wanted = {**wanted, **{name: _Plan() for name in tree}}
            notes[root.name][-1] = "the temperatures of this taxonomy stay 1: others would make it worse"
    return wanted, rows.judge(wanted)


def _are_worse(after: Shown, before: Shown, heads: Sequence[str], metric: str) -> bool:
    """Whether a head's accuracy falls, or its negative log-likelihood rises."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return any(sign * (after[name].get(metric, 0.0) - before[name].get(metric, 0.0)) < 0 for name in heads)


def _keep_thresholds(
    rows: _Rows, plans: Plans, wanted: Plans, before: Shown, notes: dict[str, list[str]]
) -> tuple[Plans, Shown]:
    """The plans with the thresholds that help, and their scores."""
    after = rows.judge(wanted)
    metric = HEADLINE[HeadKind.MULTI_LABEL]
    found, kept = dict(plans), dict(before)
    for head in rows.schema:
        if wanted[head.name] == plans[head.name]:
            continue
        then, now = before[head.name].get(metric, 0.0), after[head.name].get(metric, 0.0)
        if now > then:
            found[head.name], kept[head.name] = wanted[head.name], after[head.name]
        else:
            what = "a threshold per label" if wanted[head.name].thresholds == "label" else "a threshold for all labels"
            notes[head.name].append(f"{what} is not kept: {metric} {then:.3f} would become {now:.3f}")
    return found, kept


class _Rows:
    """The validation rows in folds, what is fitted on them, and how good that is on the fold that was left out."""

    def __init__(self, logits: NDArray[np.float32], labels: Labels, schema: Schema) -> None:
        self.logits, self.labels, self.schema = logits, labels, schema
        self.fold = folds_of(len(logits))
        self._temperatures: dict[tuple[str, Temperatures, int | None], float] = {}  # each is needed for several plans

    def labels_of(self, head: Head) -> Labels:
        """The known labels of the head."""
        given = self.labels[:, self.schema.label_columns[head.name]]
        return given[~np.isnan(given).any(axis=1)]

    def judge(self, plans: Plans) -> Shown:
        """By head, SHOWN of answers that each fold of the rows gets from what the other folds chose."""
        folds = [(slice(None), self.schema)] if len(self.logits) else []
        if any(plan != _Plan() for plan in plans.values()):
            folds = [(self.fold == fold, self.fit(plans, fold)) for fold in range(self.fold.max() + 1)]
        parts = [
            list(answers_of(to_scores(self.logits[rows], fitted), self.labels[rows], fitted)) for rows, fitted in folds
        ]
        return {
            head.name: {} if head.kind == HeadKind.REGRESSION else _shown([part[place] for part in parts])
            for place, head in enumerate(self.schema)
        }

    def fit(self, plans: Plans, left_out: int | None = None) -> Schema:
        """The schema with what the plans say, fitted on all folds but one."""
        heads = []
        for head in self.schema:
            plan, (logits, true) = plans[head.name], self._known(head, left_out)
            if plan != _Plan() and len(true):
                if plan.temperature != "kept":
                    temperature = self._temperature(head, plan.temperature, left_out)
                    head = head.model_copy(update={"temperature": temperature})
                if plan.thresholds != "kept":
                    scores = to_scores(logits, Schema([head]))
                    thresholds = fit_thresholds(scores, true.astype(bool), per_label=plan.thresholds == "label")
                    head = head.model_copy(update={"thresholds": thresholds})
            heads.append(head)
        return Schema(heads)

    def reject(self, plans: Plans, wanted: Rejections, notes: dict[str, list[str]]) -> tuple[Schema, Shown]:
        """The fitted schema with the wanted bounds, and by head that may reject the cross-fitted `rejection_scores`."""
        whole = self.fit(plans)
        if not wanted:
            return whole, {}
        parts = []
        for fold in range(self.fold.max() + 1 if len(self.fold) else 0):
            rest, left_out = self.fold != fold, self.fold == fold
            fitted = self.fit(plans, fold)
            given = to_scores(self.logits[rest], fitted)
            fitted = fit_rejections(given, self.labels[rest], fitted, wanted, lambda head, note: None)
            scores = to_scores(self.logits[left_out], fitted)
            parts.append(list(answers_of(scores, self.labels[left_out], fitted)))
        found = fit_rejections(
            to_scores(self.logits, whole), self.labels, whole, wanted, lambda head, note: notes[head].append(note)
        )
        places = {head.name: place for place, head in enumerate(found)}
        rejecting = [head.name for head in found.rejecting_heads]
        return found, {name: rejection_scores([part[places[name]] for part in parts]) for name in rejecting}

    def _known(self, head: Head, left_out: int | None) -> tuple[NDArray[np.float32], Labels]:
        """The head's logits and labels in the rows that have them, without one fold."""
        given = self.labels[:, self.schema.label_columns[head.name]]
        rows = ~np.isnan(given).any(axis=1) & (True if left_out is None else self.fold != left_out)
        return self.logits[rows, self.schema.columns[head.name]], given[rows]

    def _temperature(self, head: Head, kind: Temperatures, left_out: int | None) -> float:
        heads = [head] if kind == "head" else self._taxonomy(head)
        key = heads[0].name, kind, left_out
        if key not in self._temperatures:
            parts = [(each, *self._known(each, left_out)) for each in heads]
            self._temperatures[key] = _fit_temperature([_nll(*part) for part in parts if len(part[-1])])
        return self._temperatures[key]

    def _taxonomy(self, head: Head) -> list[Head]:
        """All heads of the taxonomy that the head belongs to."""
        while head.parent is not None:
            head = self.schema[head.parent]
        return levels_below(head, self.schema)


def _shown(parts: list[HeadAnswers]) -> dict[str, float]:
    """SHOWN, as in `polyhead_training.evaluation.metrics`, which also computes what takes long for many labels."""
    parts = [part for part in parts if len(part.true)]
    if not parts:
        return {}
    true, chosen = (np.concatenate([getattr(part, name) for part in parts]) for name in ("true", "chosen"))
    scores = np.concatenate([part.scores for part in parts])
    joined = replace(parts[0], true=true, chosen=chosen, scores=scores)
    right = (true & chosen).sum(axis=0)
    either = true.sum(axis=0) + chosen.sum(axis=0)
    if joined.head.kind == HeadKind.MULTI_LABEL:
        nll = binary_log_loss(true, scores)
        f1 = 2 * right / either.clip(min=1)
    else:
        exact = scores.astype(np.float64)
        exact /= exact.sum(axis=1, keepdims=True)
        nll = -np.log(exact[true.astype(bool)].clip(np.finfo(np.float64).eps)).mean()
        f1 = 2 * right[either > 0] / either[either > 0]
    found = {
        "ece": expected_calibration_error(*decisions(joined)),
        "nll": nll,
        "micro_f1": 2 * right.sum() / max(either.sum(), 1),
        "macro_f1": f1.mean(),
    }
    if joined.head.kind == HeadKind.SINGLE_LABEL:
        found["accuracy"] = (true & chosen).any(axis=1).mean()
    return {name: float(value) for name, value in found.items()}


def _nll(head: Head, logits: NDArray[np.float32], labels: Labels) -> Callable[[float], float]:
    """The negative log-likelihood of all rows for a temperature's logarithm; of many rows, estimated with a part."""
    part = some_rows(logits)
    given, loss = logits[part], log_loss_of(head, labels[part])
    return lambda log_temperature: loss(given / np.float32(np.exp(log_temperature))) * len(labels)


def _fit_temperature(parts: Sequence[Callable[[float], float]]) -> float:
    """The most probable temperature: negative log-likelihood (Guo et al. 2017), and a prior around 1 for few rows."""

    def loss(log_temperature: float) -> float:
        return sum(nll(log_temperature) for nll in parts) + (log_temperature / LOG_TEMPERATURE) ** 2 / 2

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
