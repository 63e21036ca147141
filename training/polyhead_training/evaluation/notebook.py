"""The HTML with which a notebook shows an evaluation and a run: tables and plots. All names in it are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.metrics import HEADLINE, MAIN, HeadAnswers
from polyhead_training.evaluation.wording import number

MOST_HEADS = 12  # with plots


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """An HTML table; None is an empty cell."""
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in columns)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(_cell(cell)) for cell in row))
        for row in rows
    )
    title = Markup("<caption>{}</caption>").format(caption) if caption else ""
    return str(Markup("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(title, head, body))


def scores_table(
    metrics: Mapping[str, Mapping[str, float]],
    heads: Iterable[Head],
    caption: str,
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> str:
    """Each head's main scores, and what each baseline reaches in the first of them.

    Args:
        metrics: by head name.
        baselines: by head name and name of the baseline.
    """
    baselines = baselines or {}
    names = sorted({name for found in baselines.values() for name in found})
    rows = []
    for head in heads:
        found = metrics[head.name]
        scores = ", ".join(f"{name} {_cell(found[name])}" for name in MAIN[head.kind] if name in found)
        others = [baselines.get(head.name, {}).get(name, {}).get(HEADLINE[head.kind]) for name in names]
        rows.append([head.name, head.kind, found.get("rows"), scores, *others])
    columns = [f"{name} (first score)" for name in names]
    return table(["head", "kind", "rows", "scores", *columns], rows, caption)


def run_table(metrics: Mapping[str, Any], checkpoint: Path) -> str:
    """What was trained, in how long, and where it is."""
    training = {name: value for name, value in metrics["training"].items() if isinstance(value, int | float | str)}
    rows = [["checkpoint", checkpoint], ["report", checkpoint / "report" / "index.html"]]
    rows += [[name.replace("_", " "), value] for name, value in training.items()]
    return table(["run", ""], rows)


def curves(history: Sequence[Mapping[str, Any]], schema: Schema) -> str:
    """Losses and validation scores over epochs."""
    with matplotlib.rc_context(plots.STYLE):
        return str(Markup("").join(plots.to_svg(figure) for figure in plots.training_curves(history, schema)))


def figures(answers: Iterable[HeadAnswers]) -> str:
    """The plots of each head, each head in a block that can be folded."""
    blocks: list[Markup] = []
    with matplotlib.rc_context(plots.STYLE):
        for part in answers:
            if len(part.true) and len(blocks) < MOST_HEADS:
                svg = Markup("").join(plots.to_svg(figure) for figure in _figures(part))
                blocks.append(Markup("<details open><summary>{}</summary>{}</details>").format(part.head.name, svg))
    return str(Markup("").join(blocks))


def _figures(answers: HeadAnswers) -> list[Figure]:
    match answers.head.kind:
        case HeadKind.SINGLE_LABEL:
            return [plots.reliability_diagram(answers)]
        case HeadKind.MULTI_LABEL:
            return [plots.precision_recall(answers), plots.reliability_diagram(answers)]
        case HeadKind.REGRESSION:
            return [plots.predicted_and_true(answers)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, int | float) else str(value)
