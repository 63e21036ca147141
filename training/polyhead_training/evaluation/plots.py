"""The report's plots as matplotlib figures, and their SVG, which takes the text colour of the page.

Call these functions within ``matplotlib.rc_context(STYLE)``. Each figure has one pair of axes and fits a telephone
without being scaled, so its letters have the size of the page's text at every width.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from polyhead.schema import Head, Schema
from polyhead_training.evaluation.metrics import HEADLINE, HeadAnswers, decisions, reliability
from polyhead_training.evaluation.rejection import risk_coverage
from polyhead_training.evaluation.wording import shorten

INK = "#7a7b7c"  # readable on light and dark; replaced in the SVG by the page's colour
PALETTE = ("#3b82c4", "#e08a2e", "#3a9e75", "#c4566b", "#8a6fc0", "#8c8c46")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polyhead",
    "text.parse_math": False,  # a label may hold dollar signs
    "font.size": 9,  # points: 12 pixels
    "axes.titlesize": 10,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 6),
    "grid.alpha": 0.25,
    "legend.fontsize": "medium",
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}
WIDTH = 3.6  # inches: 346 pixels of a telephone's 360
HEIGHT = 2.9
LEGEND_LINE = 0.2  # inches
MOST_POINTS = 800  # of a scatter plot
MOST_CURVES = 5  # labels of a precision-recall plot
NAME_LENGTH = 30  # of a label in a legend


def to_svg(figure: Figure) -> Markup:
    """One ``<svg>`` element without external links, to embed in a page."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser has glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = re.sub(r' id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis|legend)_\d+"', "", svg)
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor"))


def loss_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and validation loss over epochs.

    Args:
        history: the Trainer's ``log_history``.
    """
    figure, axes = _figure(legend=2)
    for label, points in (("training", training_losses(history)), ("validation", _points(history, "eval_loss"))):
        _curve(axes, points, label)
    axes.set(title="Loss", xlabel="epoch", ylabel="sum over heads")
    _legend(figure, axes)
    return figure


def training_losses(history: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Epoch and mean training loss of windows of about equal length.

    The Trainer logs the mean since its last entry. At a checkpoint and at the end that may be a single batch, which
    looks like a jump. A window shorter than half of the longest one joins the window before it, weighted by steps.
    """
    windows: list[list[float]] = []  # epoch, steps, sum of losses
    last = 0
    for entry in history:
        if "loss" in entry:
            steps = max(int(entry.get("step", last + 1)) - last, 1)
            last += steps
            windows.append([entry["epoch"], steps, steps * entry["loss"]])
    longest = max((window[1] for window in windows), default=0)
    merged: list[list[float]] = []
    for window in windows:
        if merged and (2 * window[1] < longest or 2 * merged[-1][1] < longest):
            merged[-1] = [window[0], merged[-1][1] + window[1], merged[-1][2] + window[2]]
        else:
            merged.append(window)
    return [(epoch, total / count) for epoch, count, total in merged]


def training_curves(history: Sequence[Mapping[str, Any]], schema: Schema) -> list[Figure]:
    """The losses, then the main validation score of each head."""
    curves = [validation_curve(history, head) for head in schema]
    return [loss_curves(history), *(curve for curve in curves if curve is not None)]


def validation_curve(history: Sequence[Mapping[str, Any]], head: Head) -> Figure | None:
    """A head's main validation score over epochs, on its own axis; None if fewer than two were measured."""
    metric = HEADLINE[head.kind]
    points = _points(history, f"eval_{head.name}/{metric}")
    if len(points) < 2:
        return None
    figure, axes = _figure()
    _curve(axes, points, metric)
    axes.set(title="Validation score by epoch", xlabel="epoch", ylabel=metric)
    return figure


def reliability_diagram(answers: HeadAnswers) -> Figure:
    """Confidence against the share of right decisions; a dot's area shows how many decisions have that confidence."""
    confidence, right, counts = reliability(*decisions(answers)).T
    figure, axes = _figure()
    axes.plot((0, 1), (0, 1), color=INK, linestyle=":", linewidth=1)
    axes.plot(confidence, right, linewidth=1)
    axes.scatter(confidence, right, s=10 + 90 * counts / counts.max())
    axes.set(title="Reliability", xlabel="score of the decision", ylabel="share of right decisions")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
    return figure


def accuracy_coverage(answers: HeadAnswers, metrics: Mapping[str, float]) -> Figure:
    """How many of the answers are right if only the surest are given; and where the checkpoint's reject_below is.

    Args:
        metrics: of the head.
    """
    has_point = "answered_accuracy" in metrics
    figure, axes = _figure(legend=2 if has_point else 0)
    share, right = risk_coverage(answers)
    axes.plot(*_thin(share, right), label=f"answers with the highest {answers.head.reject_by}")
    if has_point:
        point = [metrics["coverage"]], [metrics["answered_accuracy"]]
        axes.plot(*point, marker="D", linestyle="", label="the checkpoint's reject_below")
    axes.set(title="Accuracy of what is answered", xlabel="share of rows answered", ylabel="share of right answers")
    axes.set(xlim=(0, 1.02), ylim=(min(0.98, right.min(initial=1) - 0.02), 1.005))
    if has_point:
        _legend(figure, axes)
    return figure


def precision_recall(answers: HeadAnswers) -> Figure:
    """Of all labels together, and of the labels with most rows."""
    rows = answers.true.sum(axis=0)
    shown = [i for i in np.argsort(-rows, kind="stable")[:MOST_CURVES] if rows[i]]
    figure, axes = _figure(legend=1 + len(shown))
    if shown:
        precision, recall, _ = precision_recall_curve(answers.true.ravel(), answers.scores.ravel())
        axes.plot(*_thin(recall, precision), linewidth=2.5, label="all labels")
    for i in shown:
        precision, recall, _ = precision_recall_curve(answers.true[:, i], answers.scores[:, i])
        axes.plot(*_thin(recall, precision), linewidth=1, label=shorten(answers.head.labels[i], NAME_LENGTH))
    axes.set(title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    _legend(figure, axes)
    return figure


def threshold_curve(answers: HeadAnswers, micro_f1: float) -> Figure:
    """F1 over all labels for one common threshold, and the F1 of the fitted thresholds."""
    grid = np.linspace(0.02, 0.98, 49)
    scores, is_true = np.sort(answers.scores, axis=None), answers.true.ravel() == 1
    over = len(scores) - np.searchsorted(scores, grid)
    true_scores = np.sort(answers.scores.ravel()[is_true])
    hits = len(true_scores) - np.searchsorted(true_scores, grid)
    figure, axes = _figure(legend=2)
    axes.plot(grid, 2 * hits / np.maximum(len(true_scores) + over, 1), label="one threshold for all labels")
    fitted = float(np.median(answers.head.thresholds or (0.5,)))
    axes.plot([fitted], [micro_f1], marker="D", linestyle="", label="the checkpoint's thresholds (their median)")
    axes.set(title="F1 and threshold", xlabel="threshold", ylabel="micro F1", xlim=(0, 1), ylim=(0, 1.02))
    _legend(figure, axes)
    return figure


def predicted_and_true(answers: HeadAnswers) -> Figure:
    """A regression's predicted and true numbers."""
    true, value = answers.true[:, 0].astype(np.float64), answers.scores[:, 0].astype(np.float64)
    figure, axes = _figure()
    some = np.linspace(0, len(true) - 1, min(len(true), MOST_POINTS)).astype(int)
    ends = (min(true.min(), value.min()), max(true.max(), value.max()))
    axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1)
    axes.scatter(true[some], value[some], s=9, alpha=0.5)
    axes.set(title="Predicted and true", xlabel="true", ylabel="predicted")
    return figure


def residuals(answers: HeadAnswers) -> Figure:
    """A regression's errors."""
    figure, axes = _figure()
    axes.hist(answers.scores[:, 0].astype(np.float64) - answers.true[:, 0], bins=30)
    axes.set(title="Residuals", xlabel="predicted - true", ylabel="rows")
    return figure


def _figure(legend: int = 0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT + LEGEND_LINE * legend), layout="constrained")
    axes: Axes = figure.subplots()
    axes.locator_params(nbins=5)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    if axes.lines:
        figure.legend(loc="outside lower left", ncols=1, borderaxespad=0, handlelength=1.5)


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(entry["epoch"], entry[key]) for entry in history if key in entry]


def _curve(axes: Axes, points: Sequence[tuple[float, float]], label: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)


def _thin(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), 300)).astype(int))
    return x[some], y[some]
