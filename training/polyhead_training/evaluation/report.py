"""The report's folder: one self-contained page, ``metrics.json``, ``predictions.parquet`` and a model card.

The model card is ``README.md`` with the header that the Hugging Face hub reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_fscore_support

from polyhead.schema import HeadKind
from polyhead_training.errors import ConfigError
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.baselines import LINEAR, MAJORITY
from polyhead_training.evaluation.calibration import SHOWN
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import HEADLINE, HeadAnswers, answers_of
from polyhead_training.evaluation.predictions import write_predictions, write_suspects
from polyhead_training.evaluation.verdicts import notes_of

MOST_LABELS = 100  # of a table
MOST_MISTAKES = 12
MISTAKE_LENGTH = 600  # characters of the text
WHEN = ("before", "after")  # calibration


def check_report_folder(path: Path) -> None:
    """Makes sure that writing a report to `path` replaces nothing but a report.

    Raises:
        ConfigError: something else is there.
    """
    if not path.exists():
        return
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {"a file"}
    if names and not names >= {"index.html", "metrics.json", "predictions.parquet"}:
        raise ConfigError(f"{path}: holds something that is no report and is not replaced; name another --output")


@matplotlib.rc_context(plots.STYLE)
def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    name: str = "Polyhead classifier",
    source: str = "test rows",
    history: Sequence[Mapping[str, Any]] | None = None,
    calibration: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    others: Sequence[Evaluation] = (),
) -> None:
    """Writes ``index.html``, ``metrics.json``, ``predictions.parquet``, ``suspects.csv`` and ``README.md``.

    Files are written one by one, so the folder should be one from `polyhead.files.replaced_folder`.

    Args:
        name: of the model.
        source: the evaluated rows.
        history: the Trainer's ``log_history``.
        calibration: the summary of `polyhead_training.evaluation.calibration.calibrate`.
        training: numbers of the fit: ``rows``, ``seconds`` and others.
        others: of other splits, whose rows are also in ``predictions.parquet`` and ``suspects.csv``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = answers_of(evaluation.scores, evaluation.labels, evaluation.schema, evaluation.unseen)
    answers = {part.head.name: part for part in parts}
    heads = [_head(answers[head.name], evaluation) for head in evaluation.schema]
    content = {
        "name": name,
        "source": source,
        "rows": len(evaluation.texts),
        "truncated": int(evaluation.truncated.sum()),
        "dropped": evaluation.dropped,
        "failed": len(evaluation.failed_texts),
        "max_length": evaluation.max_length,
        "median_tokens": int(np.median(evaluation.token_counts)),
        "heads": heads,
        "training": training,
        "measured_on": evaluation.measured_on,
        "baselines": evaluation.baselines,
        "baselines_note": evaluation.baselines_note,
        "unseen_labels": evaluation.unseen_labels,
        "left_out": evaluation.left_out,
        "notes": notes_of(evaluation),
        "baseline_names": [
            name for name in (LINEAR, MAJORITY) if any(name in found for found in evaluation.baselines.values())
        ],
        "has_slices": any(evaluation.slices.values()),
    }
    counts = {key: content[key] for key in ("name", "source", "rows", "truncated", "dropped", "failed", "max_length")}
    metrics = counts | {
        "measured_on": evaluation.measured_on,
        "heads": evaluation.metrics,
        "baselines": evaluation.baselines,
        "baselines_note": evaluation.baselines_note,
        "slices": evaluation.slices,
        "slice_notes": evaluation.slice_notes,
        "unseen_labels": evaluation.unseen_labels,
        "left_out": list(evaluation.left_out),
        "notes": content["notes"],
        "heads_labels": {head.name: head.labels for head in evaluation.schema if head.labels},
    }
    if calibration:
        metrics["calibration"] = calibration
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(content), encoding="utf-8")
    (folder / "index.html").write_text(_page(content, evaluation, history, calibration), encoding="utf-8")
    write_predictions(folder / "predictions.parquet", [*others, evaluation])
    write_suspects(folder / "suspects.csv", [*others, evaluation])


def _page(
    content: Mapping[str, Any],
    evaluation: Evaluation,
    history: Sequence[Mapping[str, Any]] | None,
    calibration: Mapping[str, Any] | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polyhead_training.evaluation"), autoescape=True, trim_blocks=True
    )
    environment.globals["HeadKind"] = HeadKind
    return environment.get_template("report.html").render(
        **content,
        curves=plots.to_svg(plots.training_curves(history, evaluation.schema)) if history else None,
        calibration=[_calibration_row(name, found) for name, found in (calibration or {}).items() if _is_fitted(found)],
        calibration_columns=["head", "temperature", *(f"{key} {when}" for key in SHOWN for when in WHEN)],
        slices=evaluation.slice_tables(),
    )


def _head(answers: HeadAnswers, evaluation: Evaluation) -> dict[str, Any]:
    head, metrics = answers.head, evaluation.metrics[answers.head.name]
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
        "headline_name": HEADLINE[head.kind],
        "headline": metrics.get(HEADLINE[head.kind]),
        "plots": [plots.to_svg(figure) for figure in _figures(answers, metrics)],
        "label_columns": columns,
        "labels": labels[:MOST_LABELS],
        "more_labels": max(len(labels) - MOST_LABELS, 0),
        "mistakes": mistakes(answers, evaluation.texts),
    }


def _figures(answers: HeadAnswers, metrics: Mapping[str, float]) -> list[Figure]:
    if not len(answers.true):
        return []
    match answers.head.kind:
        case HeadKind.SINGLE_LABEL:
            return [plots.confusion(answers), plots.reliability_diagram(answers)]
        case HeadKind.MULTI_LABEL:
            return [
                plots.precision_recall(answers),
                plots.threshold_curve(answers, metrics["micro_f1"]),
                plots.reliability_diagram(answers),
            ]
        case HeadKind.REGRESSION:
            return [plots.predicted_and_true(answers)]


def _is_fitted(found: Mapping[str, Any]) -> bool:
    return found["temperature"] != 1 or _are_fitted(found.get("thresholds", {}).values())


def _are_fitted(thresholds: Iterable[float]) -> bool:
    return any(threshold != 0.5 for threshold in thresholds)


def _calibration_row(head: str, found: Mapping[str, Any]) -> list[Any]:
    return [head, found["temperature"], *(found[when].get(key) for key in SHOWN for when in WHEN)]


def model_card(content: Mapping[str, Any]) -> str:
    """The card in Markdown. Names and labels are escaped, so nothing in them is markup."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("polyhead_training.evaluation"), autoescape=False)
    environment.filters |= {"code": _code, "prose": _prose, "yaml_number": _yaml_number}
    environment.globals["HeadKind"] = HeadKind
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    defaults = {"baselines": {}, "baseline_names": [], "left_out": [], "notes": [], "has_slices": False}
    return environment.get_template("card.md").render(defaults | dict(content)) + "\n"


def _code(text: str) -> str:
    """A code span or, if the text cannot be in one within a table, text with all special characters as entities."""
    if not set("`|\n\r") & set(text):
        return f"`{text}`"
    return "".join(char if char.isalnum() or char == " " else f"&#{ord(char)};" for char in text)


def _prose(text: str) -> str:
    """A sentence that may quote labels and names: what could be markup becomes entities."""
    return "".join(f"&#{ord(char)};" if char in "`*_[]<>|\\\n\r#~&" else char for char in text)


def _yaml_number(value: float) -> str:
    """The number with a dot: YAML 1.1 reads ``1e-05`` as a text."""
    text = repr(float(value))
    return text if "." in text else text.replace("e", ".0e")


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


def mistakes(answers: HeadAnswers, texts: Sequence[str]) -> list[dict[str, str]]:
    """Wrong answers with their texts, the most confident first. Of a regression, the largest errors."""
    rows = np.flatnonzero(answers.known)
    return [
        {"answer": answer, "true": true, "text": plots.shorten(texts[rows[row]], MISTAKE_LENGTH)}
        for row, answer, true in _wrong(answers)
    ]


def _wrong(answers: HeadAnswers) -> list[tuple[int, str, str]]:
    head, true, scores = answers.head, answers.true, answers.scores.astype(np.float64)
    if not len(true):
        return []
    if head.kind == HeadKind.REGRESSION:
        order = np.argsort(-np.abs(scores - true)[:, 0], kind="stable")[:MOST_MISTAKES]
        order = order[scores[order, 0] != true[order, 0]]
        return [(int(row), f"{scores[row, 0]:.4g}", f"{true[row, 0]:.4g}") for row in order]
    wrong = answers.chosen != true
    if head.kind == HeadKind.SINGLE_LABEL:
        wrong &= answers.chosen == 1  # the true label was not answered; that is not a second mistake
    certainty = np.where(answers.chosen, scores, 1 - scores)[wrong]
    places = np.argwhere(wrong)[np.argsort(-certainty, kind="stable")[:MOST_MISTAKES]]
    result = []
    for row, label in places.tolist():
        is_chosen, name = answers.chosen[row, label], head.labels[label]
        right = "not this label" if is_chosen else name
        if head.kind == HeadKind.SINGLE_LABEL:
            (right,) = answers.true_labels(row)
        result.append((row, f"{'' if is_chosen else 'not '}{name} ({scores[row, label]:.3f})", right))
    return result
