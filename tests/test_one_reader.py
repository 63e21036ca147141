"""Every command reads a file alike: the 24 cases of `tests/rows` in training, evaluation, scoring and golden rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from polyhead_rows.errors import TableError
from polyhead_rows.table_file import ReadOptions
from polyhead_scoring.command import app as score
from polyhead_scoring.golden import write_golden
from polyhead_training.config import DataConfig
from polyhead_training.data.recipe import Recipe
from polyhead_training.data.sources import open_files
from polyhead_training.data.staging import Staged, stage
from polyhead_training.errors import DataError
from tests.rows.test_cases import CASES, write_case

# Golden rows name the first bad row and stop, the others read on.
TEXTS = {name: [one for one in case["gives"] if isinstance(one, str)]
         for name, case in CASES.items() if isinstance(case["gives"], list)}  # fmt: skip
REASONS = {name: [one["reason"] for one in case["gives"] if isinstance(one, dict)]
           for name, case in CASES.items() if isinstance(case["gives"], list)}  # fmt: skip
UNREADABLE = sorted(CASES.keys() - TEXTS.keys())
Scored = Callable[[Path], list[tuple[str | None, str | None]]]


@pytest.fixture
def scored(base_checkpoint: Path, tmp_path: Path) -> Scored:
    """Scores a file with the engine and gives text and error of each row."""

    def run(path: Path) -> list[tuple[str | None, str | None]]:
        output = tmp_path / "scored.parquet"
        result = CliRunner().invoke(score, [str(path), "--checkpoint", str(base_checkpoint), "--output", str(output)])
        if result.exit_code not in (0, 1):
            raise TableError(result.output)
        rows = pyarrow.parquet.read_table(output, columns=["text", "error"]).to_pylist()
        return [(row["text"], row["error"]) for row in rows]

    return run


def recipe(config: DataConfig, is_evaluation: bool) -> Recipe:
    """Without heads, for training or for evaluation."""
    return Recipe(config, (), without=() if is_evaluation else None)


def staged(path: Path, folder: Path, bad_rows: str, is_evaluation: bool) -> Staged:
    """The rows as training or evaluation has them on disk."""
    config = DataConfig(train=str(path), bad_rows=bad_rows)
    return stage(open_files(str(path), ReadOptions()), recipe(config, is_evaluation), str(path), folder / "rows.arrow")


@pytest.mark.parametrize("is_evaluation", [False, True], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", TEXTS)
def test_training_and_evaluation(name: str, is_evaluation: bool, tmp_path: Path) -> None:
    """Told to skip, they have the same texts but the blank ones, and count both; else the first bad row is named."""
    path = write_case(tmp_path, name)
    found = staged(path, tmp_path, "skip", is_evaluation)
    assert list(found.rows["text"]) == [text for text in TEXTS[name] if text.strip()]
    assert (found.bad, found.dropped) == (len(REASONS[name]), sum(not text.strip() for text in TEXTS[name]))
    if REASONS[name]:
        with pytest.raises(DataError, match=r"\d") as caught:
            staged(path, tmp_path, "stop", is_evaluation)
        assert f"{name}:" in str(caught.value)
        assert REASONS[name][0] in str(caught.value)


@pytest.mark.parametrize("name", TEXTS)
def test_scoring(name: str, scored: Scored, tmp_path: Path) -> None:
    """Each row of the file is a row of the output, with its text or with its reason."""
    found = scored(write_case(tmp_path, name))
    gives = CASES[name]["gives"]
    assert len(found) == len(gives)
    for (text, error), expected in zip(found, gives, strict=True):
        if isinstance(expected, dict):
            assert expected["reason"] in str(error)
        else:
            assert text == expected
            assert (error is None) == bool(expected.strip())


@pytest.mark.parametrize("name", TEXTS)
def test_golden_rows(name: str, base_checkpoint: Path, tmp_path: Path) -> None:
    """A file without a bad row gives its texts but the blank ones; of any other the first bad row is named."""
    path, out = write_case(tmp_path, name), tmp_path / "expected.jsonl"
    if REASONS[name]:
        with pytest.raises(TableError) as caught:
            write_golden(base_checkpoint, str(path), out)
        assert f"{name}:" in str(caught.value)
        assert REASONS[name][0] in str(caught.value)
        assert not out.exists()
    elif not TEXTS[name]:
        with pytest.raises(Exception, match=r"no text"):
            write_golden(base_checkpoint, str(path), out)
    else:
        write_golden(base_checkpoint, str(path), out)
        texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").rstrip("\n").split("\n")]
        assert texts == [text for text in TEXTS[name] if text.strip()]


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read(name: str, scored: Scored, base_checkpoint: Path, tmp_path: Path) -> None:
    """Every command says the same of it."""
    path, wanted = write_case(tmp_path, name), CASES[name]["gives"]["error"]
    commands: list[Callable[[], object]] = [
        lambda: staged(path, tmp_path, "stop", False),
        lambda: staged(path, tmp_path, "skip", True),
        lambda: scored(path),
        lambda: write_golden(base_checkpoint, str(path), tmp_path / "expected.jsonl"),
    ]
    for command in commands:
        with pytest.raises((DataError, TableError)) as caught:
            command()
        assert name in str(caught.value)
        assert wanted in " ".join(str(caught.value).split())


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_field_of_an_object_is_a_text_everywhere(suffix: str, base_checkpoint: Path, tmp_path: Path) -> None:
    """Training, evaluation, scoring and golden rows take ``doc.body``; a row without it has no text."""
    docs, path = [{"body": "one text"}, {"body": "another"}, {"title": "none"}], tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps({"doc": doc}) + "\n" for doc in docs), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"doc": docs}), path)
    config = DataConfig(train=str(path), text_column="doc.body", bad_rows="skip")
    for is_evaluation in (False, True):
        found = stage(
            open_files(str(path), ReadOptions()), recipe(config, is_evaluation), "rows", tmp_path / "rows.arrow"
        )
        assert (list(found.rows["text"]), found.bad) == (["one text", "another"], 1)
    output = tmp_path / "scored.jsonl"
    arguments = [str(path), "--checkpoint", str(base_checkpoint), "--output", str(output), "--text-column", "doc.body"]
    assert CliRunner().invoke(score, arguments).exit_code == 1
    scored = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["error"] is None for row in scored] == [True, True, False]
    with pytest.raises(TableError, match=r"doc\.body"):
        write_golden(base_checkpoint, str(path), tmp_path / "golden.jsonl", "doc.body")
    assert write_golden(base_checkpoint, str(path), tmp_path / "golden.jsonl", "doc.body", most=2) == 2


def test_a_column_without_texts_is_said_everywhere(base_checkpoint: Path, tmp_path: Path) -> None:
    """Training and evaluation refuse lists that were written as text; scoring notes it and answers."""
    path = tmp_path / "rows.csv"
    path.write_text("text\n\"['one', 'two']\"\n\"['three']\"\n", encoding="utf-8")
    for is_evaluation in (False, True):
        with pytest.raises(DataError, match=r"column 'text' holds lists or objects and no texts \(first .*rows.csv:2"):
            staged(path, tmp_path, "skip", is_evaluation)
    arguments = [str(path), "--checkpoint", str(base_checkpoint), "--output", str(tmp_path / "scored.jsonl")]
    result = CliRunner().invoke(score, arguments)
    assert result.exit_code == 0, result.output
    assert "note: column 'text' holds lists or objects and no texts" in " ".join(result.output.split())
