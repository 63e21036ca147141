"""``polyhead-compare``: noise is never called progress, and rows are compared with themselves."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
from click.testing import Result
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from polyhead_training.compare_command import app

LABELS = pyarrow.list_(pyarrow.string())


def write_predictions(folder: Path, labels: dict[str, list[str]] | None = None, **columns: Sequence[Any]) -> Path:
    """A report's folder with these columns of predictions.parquet."""
    folder.mkdir(parents=True)
    arrays = {
        name: pyarrow.array(values, LABELS) if name.startswith("tags") else pyarrow.array(values)
        for name, values in columns.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(arrays), folder / "predictions.parquet")
    (folder / "metrics.json").write_text(json.dumps({"heads_labels": labels or {}}), encoding="utf-8")
    return folder


def topic_run(folder: Path, right: Sequence[bool], **columns: Sequence[Any]) -> Path:
    """A run with one head, whose label is always `yes`; places are rows of one file."""
    rows = len(right)
    placed = {"file": ["rows.csv"] * rows, "row": list(range(1, rows + 1)), "text": [f"text {i}" for i in range(rows)]}
    answers = {"topic_label": ["yes" if is_right else "no" for is_right in right], "topic_true": ["yes"] * rows}
    return write_predictions(folder, **(placed | answers | columns))


def compare(tmp_path: Path, *runs: Path) -> tuple[Result, dict[str, Any]]:
    """The command's result, and comparison.json."""
    output = tmp_path / "comparison"
    result = CliRunner().invoke(app, [*map(str, runs), "--output", str(output)])
    file = output / "comparison.json"
    return result, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def test_a_real_difference_is_said(tmp_path: Path) -> None:
    """With the metric of both runs on the same rows, test, rows, p and interval; the rows are on the page."""
    a = topic_run(tmp_path / "a", [True] * 80 + [False] * 20)
    b = topic_run(tmp_path / "b", [True] * 78 + [False] * 2 + [True] * 14 + [False] * 6)
    result, found = compare(tmp_path, a, b)
    assert result.exit_code == 0, result.output
    (head,) = found["heads"]
    (against,) = head["against"]
    assert (head["rows"], head["values"]) == (100, [0.8, 0.92])
    assert against["p"] == pytest.approx(scipy.stats.binomtest(2, 16).pvalue)
    assert (against["is_better"], against["better_count"], against["worse_count"]) == (True, 14, 2)
    assert [row["place"] for row in against["worse"]] == ["rows.csv, row 79", "rows.csv, row 80"]
    assert against["labels"] == [{"label": "yes", "rows": 100, "before": 80, "after": 92}]
    sentence = "b is better than a: accuracy 0.920 against 0.800: +0.120 (95 % interval +0.0"
    assert sentence in result.output
    assert "McNemar's exact test, n = 100, p = 0.004)" in result.output
    page = (tmp_path / "comparison" / "index.html").read_text(encoding="utf-8")
    assert "14 rows got better" in page
    assert "2 rows got worse" in page
    assert "text 79" in page
    assert "<script" not in page


def test_noise_is_no_progress(tmp_path: Path) -> None:
    """A gain of three points on a hundred rows is called chance, and the sentence says what these rows can show."""
    a = topic_run(tmp_path / "a", [True] * 80 + [False] * 20)
    b = topic_run(tmp_path / "b", [True] * 76 + [False] * 4 + [True] * 7 + [False] * 13)
    result, found = compare(tmp_path, a, b)
    assert found["heads"][0]["against"][0]["is_better"] is None
    text = " ".join(result.output.split())
    assert "No evidence that b is better or worse than a; the difference can be chance: accuracy 0.830 against" in text
    assert "These rows cannot show differences much below 0.06" in text
    assert "b is better than" not in text
    result, found = compare(tmp_path / "same", a, topic_run(tmp_path / "c", [True] * 80 + [False] * 20))
    assert "a and c are equally good on each of the 100 rows." in result.output


def test_as_many_mistakes_are_not_the_same_score(tmp_path: Path) -> None:
    """No label instead of the right one, and the right one beside a wrong one: one mistake each, but another F1."""
    texts = [f"text {i}" for i in range(30)]
    runs = [
        write_predictions(tmp_path / name, text=texts, tags_labels=[labels] * 30, tags_true=[["x"]] * 30)
        for name, labels in (("a", []), ("b", ["x", "y"]))
    ]
    result, found = compare(tmp_path, *runs)
    assert found["heads"][0]["values"] == [0.0, pytest.approx(2 / 3)]
    assert "b is better than a: micro f1 0.667 against 0.000" in result.output


def test_many_comparisons_are_corrected(tmp_path: Path) -> None:
    """A p of 0.03 counts alone, and not among three; every run is compared with the first."""
    first = topic_run(tmp_path / "first", [True] * 90 + [False] * 10)
    lucky = topic_run(tmp_path / "lucky", [True] * 96 + [False] * 4)
    same = [topic_run(tmp_path / name, [True] * 90 + [False] * 10) for name in ("x", "y")]
    p = 2 / 2**6
    _, alone = compare(tmp_path / "alone", first, lucky)
    assert alone["heads"][0]["against"][0]["p"] == pytest.approx(p)
    assert alone["heads"][0]["against"][0]["is_better"] is True
    result, among = compare(tmp_path / "among", first, lucky, *same)
    (against, *_) = among["heads"][0]["against"]
    assert (against["test"]["p"], against["p"]) == (pytest.approx(p), pytest.approx(3 * p))
    assert against["is_better"] is None
    assert "p = 0.031, p = 0.094 after Holm's correction for 3 comparisons" in " ".join(result.output.split())


def test_rows_are_joined_by_place(tmp_path: Path) -> None:
    """In any order, also if the texts differ; only the rows that all runs have count, and the page says how many."""
    a = topic_run(tmp_path / "a", [True, False, True, False])
    b = topic_run(
        tmp_path / "b", [False, True, True], row=[4, 2, 9], text=["4th", "2nd", "9th"]
    )  # of the rows in both, 2 got better and 4 stayed wrong
    _, found = compare(tmp_path, a, b)
    assert found["joined"] == "2 rows are in all runs, joined by file and row (a 4, b 3)."
    assert found["heads"][0]["values"] == [0.0, 0.5]
    assert found["notes"] == ["In 2 rows the runs read different texts: another template, or the file was changed."]


def test_rows_without_a_place_are_joined_by_text(tmp_path: Path) -> None:
    """Older reports, and files that moved; a text that occurs twice is joined in order."""
    texts = ["same", "same", "other"]
    a = write_predictions(tmp_path / "a", text=texts, topic_label=["x", "y", "x"], topic_true=["x", "y", "x"])
    b = write_predictions(
        tmp_path / "b", text=[*texts, "more"], topic_label=["x", "x", "x", "x"], topic_true=["x", "y", "x", "x"]
    )
    _, found = compare(tmp_path, a, b)
    assert found["joined"] == "3 rows are in all runs, joined by text (a 3, b 4)."
    assert found["heads"][0]["values"] == [1.0, pytest.approx(2 / 3)]
    moved = [topic_run(tmp_path / name, [True] * 5, file=[f"{name}.csv"] * 5) for name in ("c", "d")]
    assert "joined by text" in compare(tmp_path, *moved)[1]["joined"]


def test_every_kind_of_head_has_its_metric(tmp_path: Path) -> None:
    """Micro F1 and mean error are those of scikit-learn and numpy; less error is better; unknown labels are out."""
    random = np.random.default_rng(0)
    rows, names = 300, ("a", "b", "c")
    true = random.random((rows, 3)) < 0.4
    given = [None if i < 5 else [n for n, has in zip(names, row, strict=True) if has] for i, row in enumerate(true)]
    stars = [None if i < 9 else float(value) for i, value in enumerate(random.random(rows))]
    runs, f1, mae = [], [], []
    for name, noise in (("a", 0.3), ("b", 0.05)):
        answered = true ^ (random.random((rows, 3)) < noise)
        values = [(star or 0) + noise * random.normal() for star in stars]
        f1.append(f1_score(true[5:], answered[5:], average="micro"))
        mae.append(np.mean([abs(v - s) for v, s in zip(values, stars, strict=True) if s is not None]))
        runs.append(
            write_predictions(
                tmp_path / name,
                text=[f"text {i}" for i in range(rows)],
                tags_labels=[[n for n, has in zip(names, row, strict=True) if has] for row in answered],
                tags_true=given,
                stars_value=values,
                stars_true=stars,
            )
        )
    _, found = compare(tmp_path, *runs)
    tags, price = found["heads"]
    assert (tags["metric"], tags["rows"], price["metric"], price["rows"]) == ("micro_f1", 295, "mae", 291)
    assert tags["values"] == pytest.approx(f1)
    assert price["values"] == pytest.approx(mae)
    assert [head["against"][0]["is_better"] for head in found["heads"]] == [True, True]
    assert price["against"][0]["test"]["difference"] < 0
    assert price["against"][0]["p"] < 0.01


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    """Heads of one run, other kinds, other labels, labels that a run does not know, and rows without an answer."""
    rows = [f"text {i}" for i in range(40)]
    a = write_predictions(
        tmp_path / "a", {"topic": ["x", "y", "new"]}, text=rows, mood_label=["m"] * 40, mood_true=["m"] * 40,
        size_value=[1.0] * 40, size_true=[1.0] * 40, topic_label=["x"] * 40,
        topic_true=["new", "y", *["x"] * 38],
    )  # fmt: skip
    b = write_predictions(
        tmp_path / "b", {"topic": ["x", "y"]}, text=rows, size_label=["1"] * 40, size_true=["1"] * 40,
        topic_label=[None, "x", None, *["x"] * 37], topic_true=[None, "x", *["x"] * 38],
    )  # fmt: skip
    result, found = compare(tmp_path, a, b)
    assert found["notes"] == [
        "Head 'mood' is not compared: only “a” has it.",
        "Head 'size' is not compared: it is regression in a, single_label in b.",
    ]
    assert found["heads"][0]["notes"] == [
        "1 row left out: b has no known label there (“new”).",
        "1 row left out: the runs have different labels there, for example y and x.",
        "1 row left out: not every run could answer them.",
        "b cannot answer “new”, because it does not know it.",
    ]
    assert found["heads"][0]["rows"] == 37
    assert "note: Head 'mood' is not compared" in result.output


def test_similar_rows_are_left_out_beside_test_rows(tmp_path: Path) -> None:
    """Test rows that are unlike those of training are compared alone; without them, similar rows are compared."""
    split = ["similar"] * 4 + ["test"] * 6
    runs = [topic_run(tmp_path / name, [name == "a"] * 4 + [True] * 6, split=split) for name in ("a", "b")]
    result, found = compare(tmp_path, *runs)
    assert result.exit_code == 0, result.output
    assert (found["heads"][0]["rows"], found["heads"][0]["values"]) == (6, [1, 1])
    runs = [topic_run(tmp_path / name, [name == "c"] * 6, split=["similar"] * 6) for name in ("c", "d")]
    _, found = compare(tmp_path, *runs)
    assert (found["heads"][0]["rows"], found["heads"][0]["values"]) == (6, [1, 0])


def test_rows_that_a_run_was_chosen_on_are_said(tmp_path: Path) -> None:
    """A score on training or validation rows is too good, and the page says so; test rows are compared alone."""
    a = topic_run(tmp_path / "a", [True] * 6, split=["test"] * 6)
    both = topic_run(tmp_path / "both", [True] * 6, split=["train"] * 2 + ["validation"] + ["test"] * 3)
    _, found = compare(tmp_path / "held out", a, both)
    assert found["notes"] == ["Rows on which a model was trained or chosen are left out: 3 of both."]
    assert found["rows"] == 3
    b = topic_run(tmp_path / "b", [True] * 3, split=["train"] * 2 + ["validation"])
    assert compare(tmp_path, a, b)[1]["notes"] == [
        "b was trained on 2 rows of these, so its scores there are too good.",
        "b was chosen and calibrated on 1 row of these, so its scores there are too good.",
    ]


def test_a_report_on_rows_of_the_training_says_so(tmp_path: Path) -> None:
    """What polyhead-evaluate knew of the file stands beside the comparison."""
    runs = [topic_run(tmp_path / name, [True] * 6, split=["evaluation"] * 6) for name in ("a", "b")]
    sentence = "The training had the same file in data.train, so the scores are too good."
    (runs[1] / "metrics.json").write_text(json.dumps({"measured_on": sentence}), encoding="utf-8")
    assert compare(tmp_path, *runs)[1]["notes"] == [f"b: {sentence}"]


def test_a_checkpoint_and_its_report_are_one_run(tmp_path: Path) -> None:
    """A path may be a checkpoint, a report or the file; names are as short as they can be."""
    (tmp_path / "x" / "out").mkdir(parents=True)
    (tmp_path / "y" / "out").mkdir(parents=True)
    a = topic_run(tmp_path / "x" / "out" / "report", [True] * 3)
    b = topic_run(tmp_path / "y" / "out" / "report", [True] * 3)
    _, found = compare(tmp_path, a.parent, b / "predictions.parquet")
    assert found["runs"] == ["x/out", "y/out"]
    twice = compare(tmp_path / "twice", a.parent, a)[0]
    assert (twice.exit_code, "this run is given twice" in twice.stderr) == (2, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "there is no such folder"),
        ("empty", "holds no predictions.parquet; name a checkpoint of polyhead-train or a report of polyhead-evaluate"),
        ("torn", "cannot be read as Parquet"),
        ("other", "is no predictions.parquet of a report"),
        ("no rows", "holds no row"),
        ("other texts", "the runs have no row in common: they evaluated different texts (a 4 rows, b 4 rows)"),
        ("other heads", "the runs have no head in common: a has “topic”; b has “mood”"),
        ("unknown", "nothing can be compared: "),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, damage: str, message: str) -> None:
    """With exit code 2, and nothing is written."""
    a, b = topic_run(tmp_path / "a", [True] * 4), tmp_path / "b"
    match damage:
        case "empty":
            b.mkdir()
        case "torn":
            shutil.copytree(a, b)
            (b / "predictions.parquet").write_bytes(b"PAR1 torn")
        case "other":
            write_predictions(b, text=["a"], label=["b"])
        case "no rows":
            write_predictions(b, text=pyarrow.array([], pyarrow.string()), topic_label=[], topic_true=[])
        case "other texts":
            topic_run(b, [True] * 4, text=list("wxyz"), file=["b.csv"] * 4)
        case "other heads":
            topic = pandas.read_parquet(a / "predictions.parquet")
            write_predictions(b, text=topic["text"].tolist(), mood_label=["x"] * 4, mood_true=["x"] * 4)
        case "unknown":
            topic_run(b, [True] * 4, topic_true=pyarrow.nulls(4, pyarrow.string()))
    result, _ = compare(tmp_path, a, b)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("polyhead-compare: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "comparison").exists()


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    """And a folder that holds something else is not replaced."""
    a = topic_run(tmp_path / "a", [True] * 4)
    assert "name at least two runs" in compare(tmp_path, a)[0].stderr
    result = CliRunner().invoke(app, [str(a), str(topic_run(tmp_path / "b", [True] * 4)), "--output", str(a)])
    assert (result.exit_code, "is not replaced" in result.stderr) == (2, True)
    assert (a / "predictions.parquet").exists()


def test_names_are_no_markup(tmp_path: Path) -> None:
    """Labels and texts of the runs are escaped, and unpaired parts of names do not confuse heads."""
    nasty = "<script>alert(1)</script>"
    runs = [
        write_predictions(
            tmp_path / name, text=[nasty, "b"], x_true_label=[label, "b"], x_true_true=[nasty, "b"],
            x_label=["1", "2"], x_true=["1", "2"],
        )
        for name, label in (("a", "b"), ("b", nasty))
    ]  # fmt: skip
    _, found = compare(tmp_path, *runs)
    assert {head["head"] for head in found["heads"]} == {"x", "x_true"}
    page = (tmp_path / "comparison" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_help_teaches() -> None:
    """It names the tests, what is written, and an example."""
    text = re.sub(r"\s+", " ", CliRunner().invoke(app, ["--help"]).output)
    for part in (
        "McNemar's exact test",
        "permutation",
        "corrected",
        "comparison.json",
        "polyhead-compare runs/reviews",
    ):
        assert part in text


def test_infinite_numbers_are_no_answer(tmp_path: Path) -> None:
    """NaN and infinity in a regression are left out; JSON holds neither."""
    runs = [
        write_predictions(
            tmp_path / name,
            text=["a", "b", "c", "d"],
            stars_value=[1.0, math.nan, value, math.inf],
            stars_true=[1.0, 2.0, 2.0, 2.0],
        )
        for name, value in (("a", 3.0), ("b", 2.0))
    ]
    result, found = compare(tmp_path, *runs)
    assert result.exit_code == 0, result.output
    assert found["heads"][0]["values"] == [0.5, 0.0]
