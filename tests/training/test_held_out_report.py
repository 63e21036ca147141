"""What a run says about its own scores: the rows they are of, the baselines beside them, and every row behind them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest

from tests.training.tiny_run import metrics, run, trained, write_run


def write_held_out(folder: Path, more: str = "") -> Path:
    """A run with a test file of its own, in which one text is also trained on."""
    path = write_run(folder, data=f'test = "{folder}/test.jsonl"', more=more)
    rows = [
        {"text": f"{noun} sing {i}", "topic": noun, "stars": 2.0 + i} for i in range(3) for noun in ("cats", "dogs")
    ]
    rows.append({"text": "cats sleep well", "topic": "cats", "stars": None})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_report_names_its_rows_and_baselines(tmp_path: Path) -> None:
    """The headline is of the test rows; baselines are fitted on the training rows and measured on those test rows."""
    result = run(write_held_out(tmp_path))
    assert result.exit_code == 0, result.output
    found = metrics(tmp_path / "out")
    assert found["measured_on"]["test"] == (
        f"Measured on 7 test rows of {tmp_path}/test.jsonl: nothing was chosen on them. 1 of them have a text of a "
        "training row, so the scores are too good."
    )
    assert "The best weights and the calibration were chosen on these same rows" in found["measured_on"]["validation"]
    report = json.loads((tmp_path / "out" / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert report["measured_on"] == found["measured_on"]["test"]
    assert report["measured_on"] in result.stdout
    assert report["baselines"] == found["baselines"]["test"]
    # Of the training rows, eight are cats and eight are dogs, so the first of the two labels is answered.
    assert found["baselines"]["test"]["topic"]["majority"]["accuracy"] == pytest.approx(4 / 7)
    # The numbers of the training rows, twice 1, 2, 4, 0, 2: their median is 2 and their mean 1.8.
    assert found["constants"]["stars"] == {"median": 2.0, "mean": 1.8}
    assert found["baselines"]["test"]["stars"]["majority"]["mae"] == pytest.approx((0 + 0 + 1 + 1 + 2 + 2) / 6)
    assert found["baselines"]["test"]["stars"]["majority"]["rmse"] == pytest.approx(
        np.sqrt((0.2**2 + 1.2**2 + 2.2**2) / 3)
    )
    assert found["baselines"]["test"]["topic"]["linear"]["accuracy"] == 1  # the noun says it
    card = (tmp_path / "out" / "report" / "README.md").read_text(encoding="utf-8")
    assert "| head | metric | value | linear | majority |" in card
    assert "slices" not in card
    table = pandas.read_parquet(tmp_path / "out" / "report" / "predictions.parquet")
    assert table.groupby("split").size().to_dict() == {"test": 7, "validation": 16}
    test = table[table["split"] == "test"]
    assert test["row"].tolist() == list(range(1, 8))
    assert set(test["file"]) == {f"{tmp_path}/test.jsonl"}
    assert found["test"]["topic"]["accuracy"] == pytest.approx((test["topic_label"] == test["topic_true"]).mean())
    suspects = pandas.read_csv(tmp_path / "out" / "report" / "suspects.csv")
    assert list(suspects.columns) == ["head", "given", "proposed", "score", "file", "row", "split", "text"]


def test_baselines_can_be_left_out(tmp_path: Path) -> None:
    """By a key, which is no part of what a resumed run must keep."""
    out = trained(write_held_out(tmp_path, more="[report]\nbaselines = false\nsuspects = false"))
    assert "baselines" not in metrics(out)
    assert json.loads((out / "report" / "metrics.json").read_text(encoding="utf-8"))["baselines"] == {}
    assert "linear" not in (out / "report" / "README.md").read_text(encoding="utf-8")
