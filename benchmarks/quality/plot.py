"""The plot: a line per head, with a mark per method at its mean and a bar over its seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.methods import FASTTEXT, LOGISTIC, PRODUCT, SGD, SPACY
from loadtest.result import BLUE, GREEN, ORANGE, PURPLE, RED
from polyhead_training.evaluation.metrics import LOWER_IS_BETTER

# Colour, shape, and place beside the head's line, because marks of one value would hide each other. The majority answer
# is not drawn: it is so far off that the others would lie on one another.
MARKS = {
    PRODUCT: (BLUE, "D", -0.24),
    LOGISTIC: (RED, "o", -0.12),
    SGD: (ORANGE, "s", 0.0),
    FASTTEXT: (GREEN, "^", 0.12),
    SPACY: (PURPLE, "v", 0.24),
}
METRICS = {"accuracy": "accuracy", "micro_f1": "micro F1", "mae": "mean absolute error"}


def plot(result: Mapping[str, Any]) -> Figure:
    """Shares above, errors below, because of an error less is better."""
    heads = [
        (f"{data_set} {name}", head)
        for data_set, found in result["sets"].items()
        for name, head in found["heads"].items()
    ]
    shares = [pair for pair in heads if pair[1]["metric"] not in LOWER_IS_BETTER]
    errors = [pair for pair in heads if pair[1]["metric"] in LOWER_IS_BETTER]
    panels = [panel for panel in (shares, errors) if panel]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 1.6 + 0.5 * len(heads)), height_ratios=[len(panel) + 1 for panel in panels],
        squeeze=False,
    )  # fmt: skip
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        _draw(axis, panel, result["methods"])
    axes[0, 0].set_title("Test rows, trained from scratch: mean and range over seeds")
    if axes[0, 0].get_legend_handles_labels()[0]:  # there is more than the majority answer
        axes[0, 0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3)
    return figure


def _draw(axis: Axes, heads: list[tuple[str, Any]], titles: Mapping[str, str]) -> None:
    is_named = set()
    for place, (_, head) in enumerate(heads):
        for method, scores in head["methods"].items():
            if method not in MARKS:
                continue
            colour, shape, beside = MARKS[method]
            score = scores[head["metric"]]
            reach = [[score["mean"] - score["low"]], [score["high"] - score["mean"]]]
            axis.errorbar(
                score["mean"], place + beside, xerr=reach, color=colour, marker=shape, markersize=4.5, capsize=3,
                elinewidth=1.2, linestyle="none", label=None if method in is_named else titles[method],
            )  # fmt: skip
            is_named.add(method)
    axis.set_yticks(range(len(heads)), [f"{name}, {METRICS[head['metric']]}" for name, head in heads])
    axis.set_ylim(len(heads) - 0.5, -0.5)
    axis.grid(axis="x", color="#e5e5e5")
    axis.set_axisbelow(True)
    if heads[0][1]["metric"] in LOWER_IS_BETTER:
        axis.set_xlabel("less is better")
