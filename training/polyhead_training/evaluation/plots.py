"""The report's plots as matplotlib figures, and their SVG, which takes the text colour of the page.

Call these functions within ``matplotlib.rc_context(STYLE)``.
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
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from polyhead.schema import Schema
from polyhead_training.evaluation.metrics import HEADLINE, HeadAnswers, decisions, reliability

INK = "#7a7b7c"  # readable on light and dark; replaced in the SVG by the page's colour
PALETTE = ("#3b82c4", "#e08a2e", "#3a9e75", "#c4566b", "#8a6fc0", "#8c8c46")
HEAT = LinearSegmentedColormap.from_list("heat", [(0.23, 0.51, 0.77, 0.0), (0.23, 0.51, 0.77, 1.0)])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polyhead",
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}
MOST_LABELS = 25  # of a confusion matrix
MOST_POINTS = 2000  # of a scatter plot


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


def training_curves(history: Sequence[Mapping[str, Any]], schema: Schema) -> Figure:
    """Training and validation loss, and each head's main validation score, over epochs.

    Args:
        history: the Trainer's ``log_history``.
    """
    figure, (losses, scores) = _figure(10, 3.6, columns=2)
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        _curve(losses, history, key, label)
    losses.set(title="Loss", xlabel="epoch", ylabel="sum over heads")
    for head in schema:
        _curve(scores, history, f"eval_{head.name}/{HEADLINE[head.kind]}", f"{head.name} {HEADLINE[head.kind]}")
    scores.set(title="Validation scores", xlabel="epoch")
    for axes in (losses, scores):
        if axes.lines:
            axes.legend()
    return figure


def confusion(answers: HeadAnswers) -> Figure:
    """Shares of each true label's rows by answered label. If there are many labels, the most confused ones."""
    counts = answers.true.T.astype(np.int64) @ answers.chosen
    shown = np.arange(len(counts))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    title = "Confusion matrix"
    if len(counts) > MOST_LABELS:
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_LABELS])
        title = f"Confusion matrix: the {MOST_LABELS} of {len(counts)} labels with most mistakes"
    shares = counts[np.ix_(shown, shown)] / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    names = [shorten(answers.head.labels[i], 24) for i in shown]
    side = 2.5 + 0.28 * len(shown)
    figure, (axes,) = _figure(side + 1.5, side)
    axes.imshow(shares, cmap=HEAT, vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel="answered", ylabel="true, each row sums to 100 %")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.01:
            ink = "white" if share > 0.6 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    return figure


def reliability_diagram(answers: HeadAnswers) -> Figure:
    """Confidence against the share of right decisions, and how many decisions have that confidence."""
    confidence, right, counts = reliability(*decisions(answers)).T
    figure, (axes, below) = _figure(4.2, 4.6, rows=2, height_ratios=(3, 1), sharex=True)
    axes.plot((0, 1), (0, 1), color=INK, linestyle=":", linewidth=1)
    axes.plot(confidence, right, marker="o", markersize=4)
    axes.set(title="Reliability", ylabel="share of right decisions", xlim=(0, 1), ylim=(0, 1))
    below.bar(confidence, counts, width=0.04)
    below.set(xlabel="score", ylabel="decisions", yscale="log" if counts.max() > 100 * counts.min() else "linear")
    below.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    return figure


def precision_recall(answers: HeadAnswers) -> Figure:
    """Of all labels together, and of the labels with most rows."""
    figure, (axes,) = _figure(4.8, 4.2)
    if answers.true.any():
        precision, recall, _ = precision_recall_curve(answers.true.ravel(), answers.scores.ravel())
        axes.plot(*_thin(recall, precision), linewidth=2.5, label="all labels")
    rows = answers.true.sum(axis=0)
    for i in np.argsort(-rows, kind="stable")[:5]:
        if rows[i]:
            precision, recall, _ = precision_recall_curve(answers.true[:, i], answers.scores[:, i])
            axes.plot(*_thin(recall, precision), linewidth=1, label=shorten(answers.head.labels[i], 24))
    axes.set(title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if axes.lines:
        axes.legend(fontsize=8)
    return figure


def threshold_curve(answers: HeadAnswers, micro_f1: float) -> Figure:
    """F1 over all labels for one common threshold, and the F1 of the fitted thresholds."""
    grid = np.linspace(0.02, 0.98, 49)
    true = answers.true.astype(bool)
    chosen = [answers.scores.astype(np.float64) >= threshold for threshold in grid]
    f1 = [2 * (true & over).sum() / max(true.sum() + over.sum(), 1) for over in chosen]
    figure, (axes,) = _figure(4.8, 4.2)
    axes.plot(grid, f1, label="one threshold for all labels")
    fitted = float(np.median(answers.head.thresholds or ()))
    axes.plot([fitted], [micro_f1], marker="D", linestyle="", label="thresholds in the checkpoint (at their median)")
    axes.set(title="F1 and threshold", xlabel="threshold", ylabel="micro F1", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    return figure


def predicted_and_true(answers: HeadAnswers) -> Figure:
    """A regression's predicted and true numbers, and their difference."""
    true, value = answers.true[:, 0].astype(np.float64), answers.scores[:, 0].astype(np.float64)
    figure, (axes, residuals) = _figure(9, 3.8, columns=2)
    some = np.linspace(0, len(true) - 1, min(len(true), MOST_POINTS)).astype(int)
    ends = (min(true.min(), value.min()), max(true.max(), value.max()))
    axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1)
    axes.scatter(true[some], value[some], s=9, alpha=0.5)
    axes.set(title="Predicted and true", xlabel="true", ylabel="predicted")
    residuals.hist(value - true, bins=30)
    residuals.set(title="Residuals", xlabel="predicted - true", ylabel="rows")
    return figure


def shorten(text: str, length: int) -> str:
    """At most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).ravel())


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)


def _thin(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), 300)).astype(int))
    return x[some], y[some]
