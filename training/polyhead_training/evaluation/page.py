"""The report's page: what it shows of each head, and its HTML. It loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from sklearn.metrics import precision_recall_fscore_support

from polyhead.schema import HeadKind
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.calibration import SHOWN
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.headline import BASELINES, HeadVerdict, measured_baselines
from polyhead_training.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, HeadAnswers
from polyhead_training.evaluation.mistakes import (
    Mistakes,
    largest_errors_code,
    mistakes,
    most_confident,
    place_of,
    true_places,
)
from polyhead_training.evaluation.wording import listed, number, quoted, shorten

if TYPE_CHECKING:
    from polyhead_client.explanation import Reason

MOST_LABELS = 100  # of a table
MOST_MATRIX_LABELS = 12  # of a confusion matrix: more of them have no place on a page
MOST_SLICED_HEADS = 3  # in one table
MOST_SUSPECTS = 50  # per head
LONGEST_TEXT = 1_000  # characters of a suspect's text
MOST_MOVED = 4  # words that a sentence names
LEAST_MOVED = 0.01
LONGEST_WORD = 40
LABELS_OPEN = 30  # a longer table is folded
PLOTTED_HEADS = 40  # of more heads, the page would have more plots than a browser draws at once
BEGINNING = 110  # characters of a text that is folded


def environment() -> jinja2.Environment:
    """Of the templates of pages. Whatever is put into them is escaped."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("polyhead_training.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"number": number, "shorten": shorten, "moved": _moved}
    found.globals |= {"HeadKind": HeadKind, "LOWER_IS_BETTER": LOWER_IS_BETTER}
    found.globals |= {"BEGINNING": BEGINNING, "LABELS_OPEN": LABELS_OPEN}
    return found


def page(
    content: Mapping[str, Any],
    evaluation: Evaluation,
    history: Sequence[Mapping[str, Any]] | None,
    calibration: Mapping[str, Any] | None,
) -> str:
    """The HTML.

    Args:
        content: names, counts and `page_heads`.
        history, calibration: as `polyhead_training.evaluation.report.write_report` has them.
    """
    losses = plots.loss_curves(history) if history else None
    rejects = any("coverage" in found["before"] for found in (calibration or {}).values())
    shown = [key for key in SHOWN if rejects or key not in ("coverage", "answered_accuracy")]
    return (
        environment()
        .get_template("report.html")
        .render(
            **{**content, "heads": [head for head in content["heads"] if head["name"] not in evaluation.left_out]},
            rows_code=_rows_code(evaluation),
            losses=plots.to_svg(losses) if losses and losses.axes[0].lines else None,
            calibration=[_calibration_row(*item, shown) for item in (calibration or {}).items() if _is_fitted(item[1])],
            calibration_columns=["head", "temperature", *shown],
            calibration_notes=[
                (name, note) for name, found in (calibration or {}).items() for note in found.get("notes", ())
            ],
            slices=[part for table in evaluation.slice_tables() for part in _narrow(table)],
        )
    )


def _rows_code(evaluation: Evaluation) -> str:
    """Reads the evaluated rows; ``predictions.parquet`` may also hold those of other splits."""
    splits = sorted(set(evaluation.splits))
    filters = f', filters=[("split", "in", {splits!r})]' if splits else ""
    return f'rows = pandas.read_parquet("predictions.parquet"{filters})'


def page_heads(evaluation: Evaluation, history: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """What page and model card show of each head."""
    shown = history or () if len(evaluation.answers) <= PLOTTED_HEADS else None
    pairs = zip(evaluation.answers, evaluation.verdicts, strict=True)
    return [_head(answers, found, evaluation, shown) for answers, found in pairs]


def _head(
    answers: HeadAnswers, verdict: HeadVerdict, evaluation: Evaluation, history: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    head, metrics = answers.head, evaluation.metrics[answers.head.name]
    baselines = evaluation.baselines.get(head.name, {})
    names = measured_baselines([baselines])
    headline, found = HEADLINE[head.kind], mistakes(answers, evaluation)
    columns, labels = label_table(answers)
    return {
        "name": head.name,
        "kind": head.kind,
        "parent": head.parent,
        "y_range": head.y_range,
        "all_labels": head.labels,
        "temperature": head.temperature,
        "has_thresholds": _are_fitted(head.thresholds or ()),
        "metrics": metrics,
        "headline_name": headline,
        "headline": metrics.get(headline),
        "unseen": _unseen(evaluation, head.name),
        "rejection": _rejection(answers, metrics),
        "verdict": verdict,
        "shift": evaluation.shift[head.name].sentences if head.name in evaluation.shift else (),
        "bars": _bars(headline, metrics, baselines),
        "metric_columns": ["metric", "model", *names],
        "metric_rows": [
            [metric, value, *(baselines[name].get(metric) for name in names)] for metric, value in metrics.items()
        ],
        "plots": [] if history is None else _plots(answers, metrics, history),
        "matrix": _matrix(answers, found),
        "mistakes": found,
        "label_columns": columns,
        "labels": [_with_link(row, found, head.labels) for row in labels[:MOST_LABELS]],
        "more_labels": max(len(labels) - MOST_LABELS, 0),
        "most_confident": most_confident(answers, evaluation),
        "errors_code": largest_errors_code(head) if head.kind == HeadKind.REGRESSION else "",
        "suspects": _suspects(head.name, evaluation),
        "suspect_count": sum(suspect.head == head.name for suspect in evaluation.suspects),
    }


def _plots(answers: HeadAnswers, metrics: Mapping[str, float], history: Sequence[Mapping[str, Any]]) -> list[Markup]:
    figures = []
    if len(answers.true):
        match answers.head.kind:
            case HeadKind.SINGLE_LABEL:
                figures = [plots.reliability_diagram(answers), plots.accuracy_coverage(answers, metrics)]
            case HeadKind.MULTI_LABEL:
                figures = [
                    plots.precision_recall(answers),
                    plots.threshold_curve(answers, metrics["micro_f1"]),
                    plots.reliability_diagram(answers),
                ]
            case HeadKind.REGRESSION:
                figures = [plots.predicted_and_true(answers), plots.residuals(answers)]
    curve = plots.validation_curve(history, answers.head)
    return [plots.to_svg(figure) for figure in (*figures, *([curve] if curve else []))]


def _bars(
    metric: str, metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, float, float]]:
    """Name, value and width in percent of the bars of a head's card; none without a baseline."""
    values = {"model": metrics.get(metric)} | {name: baselines.get(name, {}).get(metric) for name in BASELINES}
    shown = {name: value for name, value in values.items() if value is not None}
    if len(shown) < 2 or "model" not in shown:
        return []
    whole = max(shown.values()) if metric in LOWER_IS_BETTER else 1.0
    return [(name, value, 100 * min(max(value / whole, 0), 1) if whole else 0) for name, value in shown.items()]


def _matrix(answers: HeadAnswers, found: Sequence[Mistakes]) -> dict[str, Any] | None:
    """Counts of answered labels by true label, of at most `MOST_MATRIX_LABELS` labels: those that are confused most."""
    head = answers.head
    if head.kind != HeadKind.SINGLE_LABEL or not len(answers.true):
        return None
    true, names = true_places(answers)
    answered = answers.chosen.argmax(axis=1)
    seen = np.unique(np.concatenate([true, answered]))
    confused = [label for kind in found for label in (kind.true, kind.answered)]
    shown = np.sort(list(dict.fromkeys([*confused, *seen.tolist()]))[:MOST_MATRIX_LABELS])
    rows_of = np.bincount(true, minlength=len(names))
    links = {(kind.true, kind.answered): place for place, kind in enumerate(found)}
    rows = []
    for right in shown.tolist():
        counts = np.bincount(answered[true == right], minlength=len(names))[shown].tolist()
        cells = [
            {
                "count": count,
                "share": count / max(int(rows_of[right]), 1),
                "is_right": right == named,
                "link": links.get((right, named)),
            }
            for named, count in zip(shown.tolist(), counts, strict=True)
        ]
        rows.append({"label": names[right], "rows": int(rows_of[right]), "cells": cells})
    return {
        "labels": [names[i] for i in shown],
        "rows": rows,
        "all": len(names),
        "seen": len(seen),
    }


def label_table(answers: HeadAnswers) -> tuple[list[str], list[list[Any]]]:
    """Column names and one row per label, the most frequent first. Empty for a regression."""
    head = answers.head
    if head.kind == HeadKind.REGRESSION or not len(answers.true):
        return [], []
    scores = precision_recall_fscore_support(answers.true, answers.chosen, average=None, zero_division=0)
    precision, recall, f1, rows = (values.tolist() for values in scores)
    named = answers.chosen.sum(axis=0).tolist()
    columns = ["label", "rows", "answered", "precision", "recall", "F1"]
    table = [list(row) for row in zip(head.labels, rows, named, precision, recall, f1, strict=True)]
    if head.thresholds is not None:
        columns.append("threshold")
        table = [[*row, threshold] for row, threshold in zip(table, head.thresholds, strict=True)]
    return columns, sorted(table, key=lambda row: -row[1])


def _with_link(row: list[Any], found: Sequence[Mistakes], labels: Sequence[str]) -> dict[str, Any]:
    """The row, and the place of the label's most frequent mistake, if it is shown."""
    index = labels.index(row[0])
    places = [place for place, kind in enumerate(found) if index in (kind.true, kind.answered)]
    own = [place for place in places if found[place].true == index]
    return {"cells": row, "link": next(iter([*own, *places]), None)}


def _unseen(evaluation: Evaluation, head: str) -> str:
    """A sentence about labels that training never saw; empty if there are none."""
    counts = evaluation.unseen_labels.get(head, {})
    if not counts:
        return ""
    rows = len(evaluation.unseen[head])
    named = listed([f"{quoted(label)} ({count:,})" for label, count in counts.items()])
    one = f"{rows:,} row{'' if rows == 1 else 's'} count as wrong because training never saw the label"
    return f"{one}{'' if len(counts) == 1 else 's'}: {named}."


def _rejection(answers: HeadAnswers, metrics: Mapping[str, float]) -> str:
    """Sentences about what serving answers without a label, and about texts that belong to none; empty if neither."""
    sentences = []
    if answers.rejected is not None and "coverage" in metrics:
        below = answers.head.reject_below
        bound = "" if below is None else f" because its {answers.head.reject_by} is below {number(below)}"
        above = "" if answers.head.parent is None else ", or because the level above has none"
        sentences.append(
            f"{1 - metrics['coverage']:.1%} of the rows get no label{bound}{above if bound else ''}"
            + (
                f"; {metrics['answered_accuracy']:.1%} of the others are right."
                if "answered_accuracy" in metrics
                else "."
            )
            + " All other numbers here are of the best label of every row."
        )
    if "out_of_scope_auroc" in metrics:
        rejected = metrics.get("out_of_scope_rejected")
        sentences.append(
            f"{int(metrics['out_of_scope_rows']):,} texts belong to none of the labels: their {answers.head.reject_by} "
            f"is lower than that of labelled rows in {metrics['out_of_scope_auroc']:.1%} of all pairs (AUROC)"
            + (f", and {rejected:.1%} of them get no label." if rejected is not None else ".")
        )
    return " ".join(sentences)


def _suspects(head: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "place": place_of(evaluation, suspect.index),
            "given": suspect.given,
            "proposed": suspect.proposed,
            "score": suspect.score,
            "text": shorten(evaluation.texts[suspect.index], LONGEST_TEXT),
        }
        for suspect in evaluation.suspects
        if suspect.head == head
    ][:MOST_SUSPECTS]


def _moved(reason: Reason) -> list[tuple[str, float]]:
    """The words that move a score most, each once, and how much higher it is with them."""
    found: dict[str, tuple[str, float]] = {}
    for word in reason.strongest(len(reason.words)):
        if word.largest is not None and abs(word.largest) >= LEAST_MOVED:
            found.setdefault(word.text.casefold(), (shorten(word.text, LONGEST_WORD), word.largest))
    return list(found.values())[:MOST_MOVED]


def _is_fitted(found: Mapping[str, Any]) -> bool:
    has_bound = found.get("reject_below") is not None or "coverage" in found["before"]
    return found["temperature"] != 1 or has_bound or _are_fitted(found.get("thresholds", {}).values())


def _are_fitted(thresholds: Iterable[float]) -> bool:
    return any(threshold != 0.5 for threshold in thresholds)


def _calibration_row(head: str, found: Mapping[str, Any], shown: Sequence[str]) -> list[Any]:
    cells = [
        f"{number(found['before'][key])} → {number(found['after'].get(key))}" if key in found["before"] else None
        for key in shown
    ]
    return [head, found["temperature"], *cells]


def _narrow(table: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The table of a slice as tables of few heads each, which fit a telephone."""
    first, rows, *heads = table["columns"]
    for start in range(0, len(heads), MOST_SLICED_HEADS):
        part = slice(2 + start, 2 + start + MOST_SLICED_HEADS)
        yield {
            "column": table["column"],
            "columns": [first, rows, *table["columns"][part]],
            "rows": [[*row[:2], *row[part]] for row in table["rows"]],
            "note": table["note"] if start == 0 else "",
        }
