"""The answers to several texts: a table for the page, and the same table as a CSV file.

The columns are those of all answers (docs/files.md). With a second model, its columns follow, with ``other_`` before
their names, and ``differs`` names the heads that answer differently.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from polyhead_client.prediction import Prediction
from polyhead_client.schema import ModelSchema
from polyhead_client.tables import answer_columns
from polyhead_client.ui.asking import TextOrFields, tolerance_of
from polyhead_client.ui.decided import answered, difference

SHOWN_ROWS = 100  # in the page; the file has all
SHOWN_CHARACTERS = 200  # of a cell in the page
FILE_NAME = "answers.csv"
OTHER = "other_"
DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of one model to all texts."""

    schema: ModelSchema
    predictions: Sequence[Prediction]


def build_columns(texts: Sequence[TextOrFields], models: Sequence[Answered]) -> dict[str, list[Any]]:
    """The values of each column, in the table's order. Fields have a column each."""
    columns: dict[str, list[Any]] = {}
    if any(isinstance(text, str) for text in texts):
        columns["text"] = [text if isinstance(text, str) else "" for text in texts]
    for name in dict.fromkeys(name for text in texts if not isinstance(text, str) for name in text):
        columns[name] = ["" if isinstance(text, str) else text.get(name, "") for text in texts]
    for model, prefix in zip(models, ("", OTHER), strict=False):
        for name, (_, values) in answer_columns(model.predictions, model.schema, None).items():
            columns[f"{prefix}{name}"] = values
    if len(models) > 1:
        columns[DIFFERS] = [", ".join(_differing(models, row)) for row in range(len(texts))]
    return columns


def _differing(models: Sequence[Answered], row: int) -> list[str]:
    """The heads whose answers to this text differ."""
    first, second = (model.predictions[row] for model in models)
    if first.error is not None or second.error is not None:
        return [] if first.error == second.error else ["error"]
    tolerance = tolerance_of([model.schema for model in models])
    sides = [
        {head.name: answered(head, model.predictions[row][head.name]) for head in model.schema.heads}
        for model in models
    ]
    names = dict.fromkeys([*sides[0], *sides[1]])
    return [name for name in names if difference(sides[0].get(name), sides[1].get(name), tolerance) is not None]


def csv_file(columns: dict[str, list[Any]]) -> str:
    """The table as CSV: lists are JSON, a null is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return file.getvalue()


def _csv_cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        value = [float(f"{one:.6g}") if isinstance(one, float) else one for one in value]
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def table_html(columns: dict[str, list[Any]]) -> str:
    """How many texts were answered, a link that saves the file, and the first rows."""
    rows = len(next(iter(columns.values())))
    said = f"{_count(rows)} answered"
    if failed := sum(error is not None for error in columns["error"]):
        said = f"{rows - failed:,} of {_count(rows)} answered; column <b>error</b> says why the others are not"
    if DIFFERS in columns:
        differing = sum(bool(heads) for heads in columns[DIFFERS])
        said += f". <b>{_count(differing)} answered differently</b> by the two models"
        said += f"; the second one's columns begin with <b>{OTHER}</b>"
    shown = "" if rows <= SHOWN_ROWS else f" The first {SHOWN_ROWS} are below, the file has all."
    data = base64.b64encode(csv_file(columns).encode(errors="replace")).decode()
    address = f"data:text/csv;charset=utf-8;base64,{data}"
    link = f'<a class="ph-save" download="{FILE_NAME}" href="{address}">Save as CSV</a>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f"<tr{_row_class(columns, number)}>{''.join(_cell_html(values[number]) for values in columns.values())}</tr>"
        for number in range(min(rows, SHOWN_ROWS))
    )
    return (
        f'<p class="ph-line" role="status">{said}.{shown}</p><p>{link}</p>'
        f'<div class="ph-scroll" tabindex="0" role="region" aria-label="answers"><table class="ph-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _count(texts: int) -> str:
    return "1 text was" if texts == 1 else f"{texts:,} texts were"


def _row_class(columns: dict[str, list[Any]], row: int) -> str:
    return ' class="ph-differs"' if DIFFERS in columns and columns[DIFFERS][row] else ""


def _cell_html(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return (
            f'<td class="ph-number">{value:.4g}</td>'
            if isinstance(value, float)
            else f'<td class="ph-number">{value}</td>'
        )
    if isinstance(value, list):
        value = ", ".join(f"{one:.3g}" if isinstance(one, float) else str(one) for one in value)
    elif value is None:
        value = ""
    elif not isinstance(value, str):
        value = json.dumps(value)
    shown = value if len(value) <= SHOWN_CHARACTERS else f"{value[: SHOWN_CHARACTERS - 1]}…"
    return f'<td dir="auto">{escape(shown)}</td>'
