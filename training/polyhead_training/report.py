"""Plots of a training run for the checkpoint's ``report/``, as PNG bytes by file name."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from polyhead.schema import Schema
from polyhead_training.evaluate import Evaluation
from polyhead_training.metrics import HEADLINE


def training_curves(history: Sequence[Mapping[str, Any]], schema: Schema) -> bytes:
    """Training and validation loss, and each head's main validation score, over epochs.

    Args:
        history: the Trainer's ``log_history``.
    """
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        losses.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label) if points else None
    losses.set(title="Loss", xlabel="epoch", ylabel="sum over heads")
    losses.legend()
    for head in schema:
        metric = HEADLINE[head.kind]
        key = f"eval_{head.name}/{metric}"
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        scores.plot(
            *zip(*points, strict=True), marker="o", markersize=3, label=f"{head.name} {metric}"
        ) if points else None
    scores.set(title="Validation scores", xlabel="epoch")
    scores.legend()
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return _to_png(figure)


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def write_report(folder: Path, evaluation: Evaluation, *, history: Sequence[Mapping[str, Any]], **_: Any) -> None:
    """The training curves."""
    (folder / "training.png").write_bytes(training_curves(history, evaluation.schema))
