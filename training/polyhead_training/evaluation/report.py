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
import pyarrow
from numpy.typing import NDArray

from polyhead.decode import DecodeOptions, decode
from polyhead.predictor import NOT_FINITE
from polyhead.schema import Head, HeadKind
from polyhead_rows.answers import answer_table
from polyhead_rows.output import open_output
from polyhead_training.errors import ConfigError
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.page import page, page_heads


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
) -> None:
    """Writes ``index.html``, ``metrics.json``, ``predictions.parquet`` and ``README.md`` into the folder.

    Files are written one by one, so the folder should be one from `polyhead.files.replaced_folder`.

    Args:
        name: of the model.
        source: the evaluated rows.
        history: the Trainer's ``log_history``.
        calibration: the summary of `polyhead_training.evaluation.calibration.calibrate`.
        training: numbers of the fit: ``rows``, ``seconds`` and others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heads = page_heads(evaluation, history)
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
    }
    counts = {key: content[key] for key in ("name", "source", "rows", "truncated", "dropped", "failed", "max_length")}
    metrics = counts | {"heads": evaluation.metrics, "slices": evaluation.slices}
    if calibration:
        metrics["calibration"] = calibration
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(content), encoding="utf-8")
    (folder / "index.html").write_text(page(content, evaluation, history, calibration), encoding="utf-8")
    write_predictions(folder / "predictions.parquet", evaluation)


def model_card(content: Mapping[str, Any]) -> str:
    """The card in Markdown. Names and labels are escaped, so nothing in them is markup."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("polyhead_training.evaluation"), autoescape=False)
    environment.filters |= {"code": _code, "yaml_number": _yaml_number}
    environment.globals["HeadKind"] = HeadKind
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template("card.md").render(content) + "\n"


def _code(text: str) -> str:
    """A code span or, if the text cannot be in one within a table, text with all special characters as entities."""
    if not set("`|\n\r") & set(text):
        return f"`{text}`"
    return "".join(char if char.isalnum() or char == " " else f"&#{ord(char)};" for char in text)


def _yaml_number(value: float) -> str:
    """The number with a dot: YAML 1.1 reads ``1e-05`` as a text."""
    text = repr(float(value))
    return text if "." in text else text.replace("e", ".0e")


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """Writes one row per text: ``text``, the columns of `polyhead_rows.answers`, and ``HEAD_true`` per head.

    ``HEAD_true`` is the label, labels or number in the data, and null if it is unknown. Texts without finite scores
    come last, with an ``error``.
    """
    schema = evaluation.schema
    answers: list[dict[str, Any]] = [
        {"heads": decode(scores, schema, DecodeOptions()), "token_count": int(count), "truncated": bool(truncated)}
        for scores, count, truncated in zip(
            evaluation.scores, evaluation.token_counts, evaluation.truncated, strict=True
        )
    ]
    texts, labels = [*evaluation.texts, *evaluation.failed_texts], evaluation.labels
    if evaluation.failed_texts:
        answers += [{"error": NOT_FINITE}] * len(evaluation.failed_texts)
        labels = np.concatenate([labels, evaluation.failed_labels])
    table = answer_table(answers, schema.to_json(), None)
    table = table.add_column(0, "text", pyarrow.array(texts, pyarrow.string()))
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        column = pyarrow.array([_true_answer(head, row) for row in given], _TRUE_TYPES[head.kind])
        table = table.append_column(f"{head.name}_true", column)
    output = open_output(path, table.schema)
    output.write(table)
    output.close()


_TRUE_TYPES = {
    HeadKind.SINGLE_LABEL: pyarrow.string(),
    HeadKind.MULTI_LABEL: pyarrow.list_(pyarrow.string()),
    HeadKind.REGRESSION: pyarrow.float32(),
}


def _true_answer(head: Head, row: NDArray[np.float32]) -> str | list[str] | float | None:
    if np.isnan(row).any():
        return None
    match head.kind:
        case HeadKind.SINGLE_LABEL:
            return head.labels[int(row[0])]
        case HeadKind.MULTI_LABEL:
            return [label for label, is_true in zip(head.labels, row, strict=True) if is_true]
        case HeadKind.REGRESSION:
            return float(row[0])
