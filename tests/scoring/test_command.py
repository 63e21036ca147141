"""polyhead-score: what is wrong with a command is said in one line, with exit code 2, before anything is scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from ray.exceptions import RayTaskError
from typer.testing import CliRunner

from polyhead_scoring.cluster import fitting_actors, naming_errors
from polyhead_scoring.command import app
from polyhead_scoring.errors import ClusterError, InputError
from polyhead_scoring.request import Request, prepare
from polyhead_scoring.run import kept_columns, make_plan
from tests.scoring.texts import plain_rows, write_jsonl


def said(*arguments: Any) -> str:
    """What the command says as it ends with exit code 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_wrong_paths_and_addresses(base_checkpoint: Path, damaged: Callable[[], Path], tmp_path: Path) -> None:
    """Each names what is wrong: data, checkpoint, address, output."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3))
    out = ["--output", tmp_path / "out"]
    assert "no such file" in said(base_checkpoint, tmp_path / "nothing.jsonl", *out)
    assert "is no place that can be reached" in said(base_checkpoint, "nowhere://bucket/rows.jsonl", *out)
    broken = damaged()
    (broken / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "is damaged or not a tokenizer" in said(broken, file, *out)
    assert not (tmp_path / "out").exists()
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        assert f"--address {address}: nothing answers" in said(base_checkpoint, file, *out, "--address", address)
    assert "no scoring run" in said(base_checkpoint, file, "--output", base_checkpoint)
    assert "Missing option '--output'" in said(base_checkpoint, file)


def test_columns_that_are_not_there(base_checkpoint: Path, tmp_path: Path) -> None:
    """A column to read or to keep must be in some file; empty files are no data."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3))
    columns = pyarrow.schema([("id", pyarrow.int64()), ("text", pyarrow.string())])
    request = {"checkpoint": base_checkpoint, "data": (str(file),), "output": str(tmp_path / "out")}
    assert kept_columns(prepare(Request(**request, keep=("id",)))[0], columns).names == ["id"]
    assert kept_columns(prepare(Request(**request))[0], columns) == columns
    for fields in ({"text_column": "review"}, {"keep": ("id", "review")}):
        with pytest.raises(InputError, match="column 'review' is in no input file; there are id, text"):
            kept_columns(prepare(Request(**request, **fields))[0], columns)
    file.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="the input files are empty"):
        make_plan(*prepare(Request(**request)))


def test_how_many_actors_fit() -> None:
    """As many as the scarcest resource allows; none is an error with the numbers."""
    assert fitting_actors({"CPU": 16.0, "memory": 1e9}, 2, 0) == 8
    assert fitting_actors({"CPU": 64.0, "GPU": 4.0}, 6, 0.5) == 8
    with pytest.raises(ClusterError, match="one needs 1 CPUs and 1 GPUs, the whole cluster has 8 and 0"):
        fitting_actors({"CPU": 8.0}, 1, 1)


def test_errors_of_tasks_are_named() -> None:
    """Our own comes through as it was; what else a task raised is a ClusterError; a bug of the driver stays one."""

    def raised_in_a_task(error: Exception) -> Exception:
        return RayTaskError("score", "traceback", error).as_instanceof_cause()

    with pytest.raises(InputError, match=r"^rows\.csv: broken$"), naming_errors():
        raise raised_in_a_task(InputError("rows.csv: broken"))
    with pytest.raises(ClusterError, match=r"a task was lost for good .*No space left"), naming_errors():
        raise raised_in_a_task(OSError("No space left on device"))
    with pytest.raises(ZeroDivisionError), naming_errors():
        raise ZeroDivisionError
