"""Scoring with a model that declares fields: which columns are read, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from typer.testing import CliRunner

from polyhead.golden import GoldenRow
from polyhead.predictor import Predictor
from polyhead_scoring.command import app
from polyhead_scoring.golden import app as golden_app
from tests.scoring.texts import read_rows
from tests.tiny import write_tiny_checkpoint

ROWS: list[dict[str, Any]] = [
    {"id": 1, "Title": "Goal", "Review Text": "The striker scored.", "stars": 3.0},
    {"id": 2, "Title": None, "Review Text": "Rain in the north", "stars": 0.5},
    {"id": 3, "Title": "", "Review Text": None, "stars": 1.0},
]
TEXTS = ["Goal (3). The striker scored.", "Rain in the north"]
TEMPLATE = "[[{Title} ({stars}). ]]{Review Text}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose model declares two fields."""
    path = tmp_path_factory.mktemp("fields") / "checkpoint"
    write_tiny_checkpoint(path, text_template="[[{Title}. ]]{Review Text}")
    return path


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows in the format of the name."""
    frame = pandas.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(checkpoint: Path, data: Path, *options: str) -> tuple[Any, list[dict[str, Any]]]:
    """Runs the command with the engine; its result and the rows of the output."""
    out = data.parent / "out.jsonl"
    arguments = [str(data), "--output", str(out), "--checkpoint", str(checkpoint), "--precision", "fp32", *options]
    result = CliRunner().invoke(app, arguments)
    return result, read_rows(out) if out.exists() else []


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_the_columns_of_the_fields_are_scored(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """The answers are those of the rendered texts; a row whose fields are all empty is blank."""
    result, rows = score(checkpoint, write(tmp_path / name))
    assert result.exit_code == 1, result.output
    texts = ["Goal. The striker scored.", "Rain in the north"]
    for row, answer in zip(rows, Predictor.load(checkpoint, precision="fp32").predict(texts), strict=False):
        assert row["topic_score"] == pytest.approx(answer["heads"]["topic"]["scores"][0], abs=1e-6)
        assert row["token_count"] == answer["token_count"]
    assert [row["error"] for row in rows] == [None, None, "the text is empty or blank"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_missing_columns_name_both_lists(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """The fields of the model and the columns that there are, and what to do with finished texts."""
    result, _ = score(checkpoint, write(tmp_path / name, [{"Heading": "Goal", "Review Text": "The striker scored."}]))
    assert result.exit_code == 2
    assert "no column 'Title'; the model's fields are 'Title', 'Review Text', the columns are" in result.stderr
    assert "'Heading', 'Review Text'; name --text-column" in result.stderr


def test_a_named_column_holds_finished_texts(checkpoint: Path, tmp_path: Path) -> None:
    """They are scored as they are, and a note says so."""
    result, rows = score(checkpoint, write(tmp_path / "rows.jsonl", ROWS[:2]), "--text-column", "Review Text")
    assert result.exit_code == 0, result.output
    assert "note: column 'Review Text' is scored as finished text; the model's fields are not used" in result.stderr
    alone = Predictor.load(checkpoint, precision="fp32").predict(["The striker scored."])[0]
    assert rows[0]["token_count"] == alone["token_count"]


def test_a_list_is_an_error_of_its_row(checkpoint: Path, tmp_path: Path) -> None:
    """The other rows are answered."""
    result, rows = score(checkpoint, write(tmp_path / "rows.jsonl", [ROWS[0] | {"Title": ["Goal"]}, *ROWS[:2]]))
    assert result.exit_code == 1, result.output
    assert [row["error"] is None for row in rows] == [False, True, True]
    assert "field 'Title' must be a text" in rows[0]["error"]


def test_values_are_spelled_as_in_training(tmp_path: Path) -> None:
    """A number in a field is written as training wrote it, from every format."""
    write_tiny_checkpoint(tmp_path / "checkpoint", text_template=TEMPLATE)
    expected = [answer["token_count"] for answer in Predictor.load(tmp_path / "checkpoint").predict(TEXTS)]
    rows = [ROWS[0], ROWS[1] | {"stars": None}]
    for name in ("rows.jsonl", "rows.parquet"):
        folder = tmp_path / name
        folder.mkdir()
        result, found = score(tmp_path / "checkpoint", write(folder / name, rows))
        assert result.exit_code == 0, result.output
        assert [row["token_count"] for row in found] == expected


def test_golden_rows_hold_the_fields(checkpoint: Path, tmp_path: Path) -> None:
    """polyhead-golden keeps the JSON objects, so that the load test also proves how a server renders."""
    out = tmp_path / "golden.jsonl"
    result = CliRunner().invoke(golden_app, [str(checkpoint), str(write(tmp_path / "rows.jsonl")), str(out)])
    assert result.exit_code == 0, result.output
    rows = [GoldenRow.model_validate_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [json.loads(row.text) for row in rows] == [
        {"Title": row["Title"], "Review Text": row["Review Text"]} for row in ROWS[:2]
    ]
    texts = tmp_path / "texts.txt"
    texts.write_text("Goal. The striker scored.\n", encoding="utf-8")
    refused = CliRunner().invoke(golden_app, [str(checkpoint), str(texts), str(out)])
    assert "the model's fields are 'Title', 'Review Text', the columns are 'text'" in refused.stderr
    arguments = [str(checkpoint), str(texts), str(out), "--text-column", "text"]
    assert CliRunner().invoke(golden_app, arguments).exit_code == 0
    (plain,) = [GoldenRow.model_validate_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert plain.scores == pytest.approx(rows[0].scores, abs=1e-6)
