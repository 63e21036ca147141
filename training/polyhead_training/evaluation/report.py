"""The report's folder: one self-contained page, ``metrics.json``, ``predictions.parquet`` and a model card.

The model card is ``README.md`` with the header that the Hugging Face hub reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from polyhead.schema import HeadKind
from polyhead_training.errors import ConfigError
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.headline import measured_baselines
from polyhead_training.evaluation.notes import notes_of
from polyhead_training.evaluation.page import page, page_heads
from polyhead_training.evaluation.predictions import write_predictions, write_suspects


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
    summary = {
        "name": name,
        "source": source,
        "rows": len(evaluation.texts),
        "truncated": int(evaluation.truncated.sum()),
        "dropped": evaluation.dropped,
        "failed": len(evaluation.failed_texts),
        "max_length": evaluation.max_length,
        "measured_on": evaluation.measured_on,
        "baselines": evaluation.baselines,
        "baselines_note": evaluation.baselines_note,
        "left_out": list(evaluation.left_out),
        "shift": {head: found.to_json() for head, found in evaluation.shift.items()},
        "notes": notes_of(evaluation),
    }
    content = summary | {
        "heads": page_heads(evaluation, history),
        "median_tokens": int(np.median(evaluation.token_counts)),
        "training": training,
        "baseline_names": measured_baselines(evaluation.baselines.values()),
        "has_slices": any(evaluation.slices.values()),
    }
    metrics = summary | {
        "heads": evaluation.metrics,
        "slices": evaluation.slices,
        "slice_notes": evaluation.slice_notes,
        "unseen_labels": evaluation.unseen_labels,
        "heads_labels": {head.name: head.labels for head in evaluation.schema if head.labels},
    }
    if calibration:
        metrics["calibration"] = calibration
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(content), encoding="utf-8")
    (folder / "index.html").write_text(page(content, evaluation, history, calibration), encoding="utf-8")
    write_predictions(folder / "predictions.parquet", [*others, evaluation])
    write_suspects(folder / "suspects.csv", [*others, evaluation])


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
