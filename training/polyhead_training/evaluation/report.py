"""The report's folder: one self-contained page, ``metrics.json``, ``predictions.parquet`` and a model card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from polyhead_training.errors import ConfigError
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.calibration import SHOWN
from polyhead_training.evaluation.card import model_card
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import HEADLINE, Answers, answers_of
from polyhead_training.evaluation.predictions import write_predictions
from polyhead_training.evaluation.tables import label_table, mistakes

MOST_ROWS = 100  # of a table of labels


def check_report_folder(path: Path) -> None:
    """Makes sure that a report can be written to `path` without harm to anything else.

    Raises:
        ConfigError: something that is no report stands there.
    """
    if not path.exists():
        return
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    if names is None or (names and not {"index.html", "metrics.json", "predictions.parquet"} <= names):
        raise ConfigError(f"{path}: holds something that is no report; it is not replaced, name another --output")


def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    name: str = "Polyhead classifier",
    source: str = "test rows",
    history: Sequence[Mapping[str, Any]] | None = None,
    calibration: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``index.html``, ``metrics.json``, ``predictions.parquet`` and ``README.md`` into the folder.

    The folder should be a staged one: files are written one by one.

    Args:
        name: of the model.
        source: what was evaluated on.
        history: the Trainer's ``log_history``.
        calibration: the summary of `polyhead_training.evaluation.calibration.calibrate`.
        training: of the fit: ``rows``, ``seconds`` and other numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answers = {part.head.name: part for part in answers_of(evaluation.scores, evaluation.labels, evaluation.schema)}
    heads = [_head(answers[head.name], evaluation) for head in evaluation.schema]
    content = {
        "name": name,
        "source": source,
        "rows": len(evaluation.texts),
        "truncated": int(evaluation.truncated.sum()),
        "dropped": evaluation.dropped,
        "max_length": evaluation.max_length,
        "median_tokens": int(np.median(evaluation.token_counts)),
        "heads": heads,
        "training": training,
    }
    counts = {key: content[key] for key in ("name", "source", "rows", "truncated", "dropped", "max_length")}
    metrics = counts | {"heads": evaluation.metrics, "slices": evaluation.slices}
    if calibration:
        metrics["calibration"] = calibration
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(content), encoding="utf-8")
    (folder / "index.html").write_text(_page(content, evaluation, history, calibration), encoding="utf-8")
    write_predictions(folder / "predictions.parquet", evaluation)


def _page(
    content: Mapping[str, Any],
    evaluation: Evaluation,
    history: Sequence[Mapping[str, Any]] | None,
    calibration: Mapping[str, Any] | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polyhead_training.evaluation"), autoescape=True, trim_blocks=True
    )
    columns, rows = _calibration_table(
        {name: found for name, found in (calibration or {}).items() if _is_fitted(found)}
    )
    return environment.get_template("report.html").render(
        **content,
        curves=plots.to_svg(plots.training_curves(history, evaluation.schema)) if history else None,
        calibration=rows,
        calibration_columns=columns,
        slices=[_slice_table(column, values, evaluation) for column, values in evaluation.slices.items()],
    )


def _head(answers: Answers, evaluation: Evaluation) -> dict[str, Any]:
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
        "labels": labels[:MOST_ROWS],
        "more_labels": max(len(labels) - MOST_ROWS, 0),
        "mistakes": mistakes(answers, evaluation.texts),
    }


def _figures(answers: Answers, metrics: Mapping[str, float]) -> list[Any]:
    if not len(answers.true):
        return []
    match answers.head.kind:
        case "single_label":
            return [plots.confusion(answers), plots.reliability_diagram(answers)]
        case "multi_label":
            return [
                plots.precision_recall(answers),
                plots.threshold_curve(answers, metrics["micro_f1"]),
                plots.reliability_diagram(answers),
            ]
        case "regression":
            return [plots.predicted_and_true(answers)]


def _is_fitted(found: Mapping[str, Any]) -> bool:
    return found["temperature"] != 1 or _are_fitted(found.get("thresholds", {}).values())


def _are_fitted(thresholds: Iterable[float]) -> bool:
    return any(threshold != 0.5 for threshold in thresholds)


def _calibration_table(calibration: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    columns = ["head", "temperature", *(f"{key} {when}" for key in SHOWN for when in ("before", "after"))]
    rows = [
        [head, found["temperature"], *(found[when].get(key) for key in SHOWN for when in ("before", "after"))]
        for head, found in calibration.items()
    ]
    return columns, rows


def _slice_table(column: str, values: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    heads = [(head.name, HEADLINE[head.kind]) for head in evaluation.schema]
    return {
        "column": column,
        "columns": [column, "rows", *(f"{name} {metric}" for name, metric in heads)],
        "rows": [
            [value, found["rows"], *(found["heads"][name].get(metric) for name, metric in heads)]
            for value, found in values.items()
        ],
    }
