"""What it costs that texts are unlike those that were trained on: measured, said in words, and calibrated on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

from polyhead.interface import Interface
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.evaluate_command import app as evaluate_app
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import expected_calibration_error
from polyhead_training.evaluation.shift import head_shift, reached, reached_if_similar
from polyhead_training.evaluation.slices import SliceOptions, score_slices
from tests.training.test_resume import HEAD, assert_same
from tests.training.tiny_run import TINY, metrics, run

WORDS = {"cats": ["purr", "meow", "whisker"], "dogs": ["bark", "fetch", "kennel"]}
CONFIG = """
output = "{folder}/out"
golden_rows = 4
[data]
train = "{folder}/rows.jsonl"
split = "{split}"
validation_share = 0.15
test_share = 0.15
similar_share = 0.15
{data}
[model]
max_length = 12
{model}
[training]
epochs = 4
batch_size = 16
learning_rate = 1e-2
[[heads]]
name = "topic"
kind = "single_label"
"""


def drifting_rows(count: int, wrong: float, year: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one year, of which a share has the words of the other topic."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        topic, other = ("cats", "dogs") if i % 2 else ("dogs", "cats")
        words = WORDS[other if draw.random() < wrong else topic]
        noise = " ".join(f"w{number}" for number in draw.integers(0, 50, 3))
        rows.append(
            {
                "text": f"{words[draw.integers(3)]} {noise} {words[draw.integers(3)]}",
                "topic": topic,
                "date": f"{year}-{1 + i * 12 // count:02}-{1 + i % 28:02}",
                "source": f"{year}-{i % 20}",
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_config(folder: Path, split: str, data: str) -> Path:
    """A config of a run of seconds."""
    path = folder / "config.toml"
    model = TINY.format(n_layer=1, dropout=0.0)
    path.write_text(CONFIG.format(folder=folder, split=split, data=data, model=model), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by time: until 2020 the words tell the topic, from 2021 on a third of them tells the wrong one."""
    folder = tmp_path_factory.mktemp("drifted")
    write_rows(folder / "rows.jsonl", [*drifting_rows(700, 0.0, 2020, 1), *drifting_rows(300, 0.35, 2021, 2)])
    result = run(write_config(folder, "time", 'time_column = "date"'))
    assert result.exit_code == 0, result.output
    (folder / "said").write_text(" ".join(result.output.split()), encoding="utf-8")
    return folder


def test_a_planted_shift_is_measured(drifted: Path) -> None:
    """Accuracy falls on the newest rows; what metrics.json and the notes say is what the rows of the report give."""
    found = metrics(drifted / "out")
    table = pandas.read_parquet(drifted / "out" / "report" / "predictions.parquet")
    table = table.assign(
        right=table["topic_label"] == table["topic_true"], confidence=[max(scores) for scores in table["topic_scores"]]
    )
    by_split = table.groupby("split").agg(rows=("right", "size"), right=("right", "mean"), sure=("confidence", "mean"))
    assert set(by_split.index) == {"similar", "validation", "test"}
    assert by_split["right"]["similar"] > 0.97
    assert 0.5 < by_split["right"]["test"] < 0.8
    shift = found["shift"]["topic"]
    for name, split in (("similar", "similar"), ("shifted", "test")):
        assert shift[name]["rows"] == by_split["rows"][split]
        assert shift[name]["accuracy"] == pytest.approx(by_split["right"][split])
        assert shift[name]["mean_confidence"] == pytest.approx(by_split["sure"][split], rel=1e-5)
        assert found[split]["topic"]["accuracy"] == pytest.approx(by_split["right"][split])
    first, second = (
        f"accuracy {by_split['right'][split]:.3f}, mean confidence {by_split['sure'][split]:.3f}"
        for split in ("similar", "test")
    )
    assert shift["sentences"][0] == f"On rows like those trained on: {first}; on the newest rows: {second}.".replace(
        "accuracy 1.000", "accuracy 1"
    )
    cost = by_split["right"]["similar"] - by_split["right"]["test"]
    assert shift["sentences"][1] == f"There accuracy falls by {cost:.3f}."
    said = (drifted / "said").read_text(encoding="utf-8")
    assert all(sentence in said for sentence in shift["sentences"])
    assert "held out of" in found["measured_on"]["similar"]
    assert "nothing was chosen on them" in found["measured_on"]["similar"]
    assert "2021-" in found["measured_on"]["test"]
    assert any(note.startswith("head 'topic': On rows like those trained on") for note in found["notes"])
    report = json.loads((drifted / "out" / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert report["shift"] == found["shift"]
    page = (drifted / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert shift["sentences"][1] in page


def test_calibration_on_shifted_rows_mends_confidence(drifted: Path, tmp_path: Path) -> None:
    """On rows of a further year, which no run saw, confidence is honest; calibrated on similar rows it would not be."""
    checkpoint = drifted / "out"
    shift = metrics(checkpoint)["shift"]["topic"]
    assert shift["if_calibrated_on_similar"]["mean_confidence"] > 0.93
    assert shift["if_calibrated_on_similar"]["ece"] > 0.2
    assert shift["shifted"]["ece"] < 0.1
    assert shift["sentences"][2] == "Its confidence there is honest, as far as these rows can tell."
    assert shift["sentences"][3].startswith("Calibrated on rows like those trained on, mean confidence there would be ")
    assert shift["sentences"][3].endswith(f" instead of {shift['shifted']['ece']:.3f}.")
    write_rows(tmp_path / "next.jsonl", drifting_rows(400, 0.35, 2022, 3))
    arguments = [str(checkpoint), str(tmp_path / "next.jsonl"), "--output", str(tmp_path / "report")]
    result = CliRunner().invoke(evaluate_app, [*arguments, "--slice", "source"])
    assert result.exit_code == 0, result.output
    table = pandas.read_parquet(tmp_path / "report" / "predictions.parquet")
    scores = np.stack(table["topic_scores"].to_list()).astype(np.float64)
    right = (table["topic_label"] == table["topic_true"]).to_numpy()
    mended = expected_calibration_error(scores.max(axis=1), right)
    assert mended < 0.1
    # What the network's logits alone say: the temperature of the checkpoint undone.
    temperature = Interface.of_checkpoint(checkpoint).schema["topic"].temperature
    assert temperature > 1.5
    plain = scores**temperature
    plain /= plain.sum(axis=1, keepdims=True)
    assert expected_calibration_error(plain.max(axis=1), right) > mended + 0.15
    content = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    similar = metrics(checkpoint)["similar"]["topic"]["accuracy"]
    assert content["shift"]["topic"]["similar"]["accuracy"] == pytest.approx(similar)
    assert content["shift"]["topic"]["shifted"]["accuracy"] == pytest.approx(right.mean())
    assert "; on these rows: accuracy" in " ".join(result.output.split())


def test_a_stranger_record_of_a_shift_is_no_error(drifted: Path, tmp_path: Path) -> None:
    """What a checkpoint records of similar rows is compared only if it is numbers of its heads."""
    checkpoint = Path(shutil.copytree(drifted / "out", tmp_path / "checkpoint"))
    write_rows(tmp_path / "next.jsonl", drifting_rows(40, 0.35, 2022, 3))
    for shift, compared in (
        ({"topic": {"similar": {"accuracy": "high"}}}, False),
        ([1], False),
        ({"topic": {"similar": {"accuracy": 0.9}}, "other": {"similar": {"mae": 1.0}}}, True),
    ):
        (checkpoint / "metrics.json").write_text(json.dumps({"shift": shift}), encoding="utf-8")
        arguments = [str(checkpoint), str(tmp_path / "next.jsonl"), "--output", str(tmp_path / "report")]
        result = CliRunner().invoke(evaluate_app, arguments)
        assert result.exit_code == 0, result.output
        assert ("On rows like those trained on: accuracy 0.900" in " ".join(result.output.split())) == compared


def test_a_run_by_group_shows_its_worst_groups(tmp_path: Path) -> None:
    """A slice per group of the test rows, the worst first, in metrics.json and on the page."""
    rows = drifting_rows(800, 0.0, 2020, 1)
    for i, row in enumerate(rows):
        row["source"] = f"site {i % 40}"
        if i % 40 in (3, 4, 17, 18, 29, 30):  # the topics are the other way round there
            row["topic"] = {"cats": "dogs", "dogs": "cats"}[row["topic"]]
    write_rows(tmp_path / "rows.jsonl", rows)
    result = run(write_config(tmp_path, "group", 'group_column = "source"'))
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    report = json.loads((out / "report" / "metrics.json").read_text(encoding="utf-8"))
    table = pandas.read_parquet(out / "report" / "predictions.parquet")
    source_of = {row["text"]: row["source"] for row in rows}
    table = table.assign(source=table["text"].map(source_of), right=table["topic_label"] == table["topic_true"])
    test = table[table["split"] == "test"].groupby("source")["right"].agg(["size", "mean"])
    sliced = report["slices"]["source"]
    assert {name: found["rows"] for name, found in sliced.items()} == test["size"].to_dict()
    accuracies = [found["heads"]["topic"]["accuracy"] for found in sliced.values()]
    assert accuracies == pytest.approx([test["mean"][name] for name in sliced])
    assert accuracies == sorted(accuracies)
    assert report["slice_notes"]["source"].startswith("The worst groups come first")
    assert "rows of other groups: accuracy" in report["shift"]["topic"]["sentences"][0]
    splits = table.groupby("split")["source"].agg(set)
    assert not splits["test"] & splits["validation"]
    assert not splits["similar"] & (splits["test"] | splits["validation"])


def test_a_killed_run_by_time_goes_on(tmp_path: Path) -> None:
    """It ends as an unbroken one, with the same splits, scores and sentences."""
    checkpoints = []
    for name in ("unbroken", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        write_rows(folder / "rows.jsonl", drifting_rows(200, 0.2, 2020, 1))
        path = write_config(folder, "time", 'time_column = "date"')
        text = path.read_text(encoding="utf-8").replace("epochs = 4", "max_steps = 8\neval_steps = 3")
        text = text.replace("max_length = 12", f"max_length = 12\n{HEAD}")
        path.write_text(text, encoding="utf-8")
        checkpoints.append(folder / "out")
    killed = subprocess.run(
        [sys.executable, "-m", "polyhead_training.train_command", str(tmp_path / "killed" / "config.toml")],
        env=os.environ
        | {
            "POLYHEAD_TEST_SIGNAL": f"{int(signal.SIGKILL)}@6",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for name, options in (("unbroken", []), ("killed", ["--resume"])):
        result = run(tmp_path / name / "config.toml", *options)
        assert result.exit_code == 0, result.output
    assert_same(checkpoints[1], checkpoints[0])
    assert metrics(checkpoints[0])["shift"]["topic"]["similar"]["rows"] > 10


SINGLE = Head(name="topic", kind=HeadKind.SINGLE_LABEL, labels=("a", "b"))
MULTI = Head(name="tags", kind=HeadKind.MULTI_LABEL, labels=("x", "y"))
NUMBER = Head(name="stars", kind=HeadKind.REGRESSION)


def evaluation_of(schema: Schema, scores: Any, labels: Any) -> Evaluation:
    """An evaluation of these scores."""
    scores, labels = np.array(scores, np.float32), np.array(labels, np.float32)
    rows = len(scores)
    return Evaluation(
        schema, 8, [f"text {i}" for i in range(rows)], labels, scores, np.ones(rows, np.int32), np.zeros(rows, bool), {}
    )


def test_what_is_reached_by_hand() -> None:
    """Mean confidence is of the answers, of a multi_label head of all labels that it gives; a regression has none."""
    schema = Schema([SINGLE, MULTI, NUMBER])
    scores = [
        [0.9, 0.1, 0.8, 0.6, 2.0],
        [0.3, 0.7, 0.4, 0.9, 3.0],
        [0.6, 0.4, 0.2, 0.1, 5.0],
        [0.5, 0.5, 0.7, 0.0, 0.0],
    ]
    labels = [[0, 1, 0, 2.5], [1, 0, 1, 3.0], [1, 1, 0, 4.0], [np.nan, np.nan, np.nan, np.nan]]
    found = evaluation_of(schema, scores, labels).reached
    assert found["topic"]["rows"] == 3
    assert found["topic"]["accuracy"] == pytest.approx(2 / 3)
    assert found["topic"]["mean_confidence"] == pytest.approx((0.9 + 0.7 + 0.6) / 3)
    assert found["topic"]["gap_error"] == pytest.approx(np.std([-0.1, -0.3, 0.6], ddof=1) / np.sqrt(3), rel=1e-5)
    # Answered: x, y | y | none; right are x and the second y. True: x | y | x.
    assert found["tags"]["mean_confidence"] == pytest.approx((0.8 + 0.6 + 0.9) / 3)
    assert found["tags"]["share_right"] == pytest.approx(2 / 3)
    assert found["tags"]["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["stars"]["mae"] == pytest.approx(0.5)
    assert "mean_confidence" not in found["stars"]


@pytest.mark.parametrize(
    ("similar", "shifted", "expected"),
    [
        (
            {"rows": 400, "accuracy": 0.749, "standard_error": 0.02, "mean_confidence": 0.66, "share_right": 0.749},
            {"rows": 400, "accuracy": 0.538, "standard_error": 0.025, "mean_confidence": 0.644, "share_right": 0.538,
             "gap_error": 0.02},
            ("On rows like those trained on: accuracy 0.749, mean confidence 0.660; on the newest rows: "
             "accuracy 0.538, mean confidence 0.644.", "There accuracy falls by 0.211.",
             "Its confidence there is too high: mean confidence is 0.106 above the share of right answers."),
        ),
        (
            {"rows": 20, "accuracy": 0.9, "standard_error": 0.02},
            {"rows": 400, "accuracy": 0.5, "standard_error": 0.02, "mean_confidence": 0.4, "share_right": 0.5,
             "gap_error": 0.02},
            ("On rows like those trained on: accuracy 0.900; on the newest rows: accuracy 0.500, mean confidence "
             "0.400.",
             "The difference of 0.400 can be chance.",
             "Its confidence there is too low: mean confidence is 0.100 below the share of right answers."),
        ),
        (
            {},
            {"rows": 400, "accuracy": 0.5, "standard_error": 0.02, "mean_confidence": 0.51, "share_right": 0.5,
             "gap_error": 0.02},
            ("On the newest rows: accuracy 0.500, mean confidence 0.510.",
             "Its confidence there is honest, as far as these rows can tell."),
        ),
    ],
)  # fmt: skip
def test_what_a_shift_costs_in_words(
    similar: dict[str, float], shifted: dict[str, float], expected: tuple[str, ...]
) -> None:
    """A fall and a gap are said if the rows can tell them from chance; without similar rows, the gap alone."""
    assert head_shift(SINGLE, similar, shifted, {}, "the newest rows").sentences == expected


def test_errors_of_a_regression_rise() -> None:
    """A higher error is worse, and a regression has no confidence."""
    found = head_shift(
        NUMBER,
        {"rows": 100, "mae": 0.5, "standard_error": 0.01},
        {"rows": 100, "mae": 0.8, "standard_error": 0.02},
        {},
        "rows of other groups",
    )
    assert found.sentences == (
        "On rows like those trained on: mae 0.500; on rows of other groups: mae 0.800.",
        "There mae rises by 0.300.",
    )


def test_the_temperature_of_similar_rows_is_undone_and_fitted_again() -> None:
    """Scores of a temperature of 3, sharpened to one of 1 on similar rows that are always right."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 4, (500, 2))
    schema = Schema([SINGLE.model_copy(update={"temperature": 3.0})])
    scores = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=1, keepdims=True)
    right = logits.argmax(axis=1)[:, None].astype(np.float32)
    found = reached_if_similar((scores.astype(np.float32), right), (scores.astype(np.float32), 1 - right), schema)[
        "topic"
    ]
    plain = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    assert found["accuracy"] == 0
    assert plain.mean() < found["mean_confidence"] < 1  # always right: sharper than the logits


def test_the_worst_groups_come_first() -> None:
    """By how many standard errors they are below all rows: 8 of 40 right before 3 of 12; few rows are not shown."""
    sizes = {"good": (50, 48), "bad": (40, 8), "small and bad": (12, 3), "tiny": (3, 0), "7": (30, 20)}
    values, scores, labels = [], [], []
    for name, (rows, right) in sizes.items():
        values += [name] * rows
        scores += [[0.8, 0.2]] * rows
        labels += [[0]] * right + [[1]] * (rows - right)
    schema, options = Schema([SINGLE]), SliceOptions(most_values=3, group_column="site")
    arrays = np.array(values, object), np.array(scores, np.float32), np.array(labels, np.float32)
    found, note = score_slices(*arrays, schema, {}, options, "site")
    assert list(found) == ["bad", "small and bad", "7"]
    assert found["bad"]["heads"]["topic"]["accuracy"] == pytest.approx(8 / 40)
    assert note.endswith(
        "2 of 5 values, 53 of 135 rows, are not shown: 1 with fewer than 10 rows each (3 rows) and 1 better ones (50 "
        "rows); polyhead-evaluate --slice site --slice-rows 1 --slice-values 5 shows all."
    )
    plain, _ = score_slices(*arrays, schema, {}, options, "other column")
    assert list(plain) == ["good", "bad", "7"]


def test_groups_that_are_numbers_are_no_quantiles() -> None:
    """Forty customers with numbers for names stay forty groups; with few rows none is shown, and a note says so."""
    values = np.array([str(i % 40) for i in range(400)], object)
    scores, labels = np.tile(np.array([[0.8, 0.2]], np.float32), (400, 1)), np.zeros((400, 1), np.float32)
    options = SliceOptions(most_values=50, group_column="customer")
    found, _ = score_slices(values, scores, labels, Schema([SINGLE]), {}, options, "customer")
    assert sorted(found) == sorted(str(i) for i in range(40))
    few, note = score_slices(values[:80], scores[:80], labels[:80], Schema([SINGLE]), {}, options, "customer")
    assert few == {}
    assert "40 of 40 values, 80 of 80 rows, are not shown: 40 with fewer than 10 rows each" in note


def test_nothing_is_reached_without_labels() -> None:
    """A head without a labelled row has no shift."""
    found = evaluation_of(Schema([SINGLE]), [[0.5, 0.5]], [[np.nan]])
    assert found.reached == {}
    assert found.beside({"topic": {"accuracy": 0.5}}, "these rows").shift == {}
    assert reached(found.answers[0]) == {}
