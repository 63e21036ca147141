"""What an evaluation says about the rows: which were measured, which labels are unknown, and what was left out."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_absolute_error
from typer.testing import CliRunner

from polyhead.predictor import Predictor
from polyhead_training.evaluate_command import app
from polyhead_training.evaluation import evaluation
from tests.tiny import TEXTS
from tests.training.test_evaluate import MOODS, TOPICS, recorded_checkpoint, write_rows


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ({"topic": None}, [], "column 'topic' has no label for head 'topic' in any of 10 rows; --without topic leaves"),
        ({"stars": "n/a"}, [], "column 'stars' has no number for head 'stars' in any of 10 rows; --without stars"),
        ({}, ["--without", "tpic"], "--without 'tpic': the model has no such head, only topic, mood, stars"),
        ({}, ["--without", "topic", "--without", "mood", "--without", "stars"], "nothing is measured; polyhead-score"),
    ],
)
def test_a_head_without_labels_is_an_error(
    base_checkpoint: Path, tmp_path: Path, labels: dict[str, object], options: list[str], message: str
) -> None:
    """A column of blanks says as little as one that is missing; so does a head that is not there."""
    rows = [{"text": text, "topic": "news", "mood": ["sad"], "stars": 1} | labels for text in TEXTS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [str(base_checkpoint), str(path), "--output", str(tmp_path / "report"), *options]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert message in result.stderr


def test_labels_that_training_never_saw_count_as_wrong(base_checkpoint: Path, tmp_path: Path) -> None:
    """They stop nothing: metrics are scikit-learn's over all labels, and they are listed with counts everywhere."""
    rows = write_rows(tmp_path / "rows.jsonl")
    for i in range(0, 40, 8):
        rows[i]["topic"] = "weather" if i else "chess"
        rows[i]["mood"] = ["sad", "bored"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output), "--slice", "country"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "5 of 40 rows have labels that training never saw; they count as wrong: 'weather' (4), 'chess' (1)" in said
    answers = [
        answer["heads"] for answer in Predictor.load(base_checkpoint).predict([str(row["text"]) for row in rows])
    ]
    topics, named = [row["topic"] for row in rows], [answer["topic"]["labels"][0] for answer in answers]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    topic, mood = metrics["heads"]["topic"], metrics["heads"]["mood"]
    assert topic["rows"] == 40
    assert topic["accuracy"] == pytest.approx(accuracy_score(topics, named))
    assert topic["macro_f1"] == pytest.approx(f1_score(topics, named, average="macro", zero_division=0))
    labels = (*MOODS, "bored")
    true, chosen = (
        np.array([[label in found for label in labels] for found in each])
        for each in ([row["mood"] for row in rows], [answer["mood"]["labels"] for answer in answers])
    )
    for average in ("micro", "macro"):
        assert mood[f"{average}_f1"] == pytest.approx(f1_score(true, chosen, average=average, zero_division=0))
    assert mood["subset_accuracy"] == pytest.approx(accuracy_score(true, chosen))
    assert metrics["unseen_labels"] == {"topic": {"weather": 4, "chess": 1}, "mood": {"bored": 5}}
    german = [i for i, row in enumerate(rows) if row["country"] == "de"]
    assert metrics["slices"]["country"]["de"]["heads"]["topic"]["accuracy"] == pytest.approx(
        accuracy_score([topics[i] for i in german], [named[i] for i in german])
    )
    table = pandas.read_parquet(output / "predictions.parquet")
    assert table["topic_true"].tolist() == topics
    assert [set(found) for found in table["mood_true"]] == [set(row["mood"]) for row in rows]
    assert "weather" in (output / "README.md").read_text(encoding="utf-8")


def test_predictions_are_enough_for_any_metric(base_checkpoint: Path, tmp_path: Path) -> None:
    """Scores with the labels' names, and the place in the source file: no code of ours is needed to recompute."""
    for number in (1, 2):
        rows = write_rows(tmp_path / f"{number}.jsonl")
        (tmp_path / f"{number}.jsonl").write_text(
            "".join(json.dumps(row | {"id": f"{number}-{i}"}) + "\n" for i, row in enumerate(rows) if i % 9 != number),
            encoding="utf-8",
        )
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "*.jsonl"), "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    table = pyarrow.parquet.read_table(output / "predictions.parquet")
    names = json.loads(table.schema.field("topic_scores").metadata[b"labels"])
    assert names == metrics["heads_labels"]["topic"] == list(TOPICS)
    frame = table.to_pandas()
    scores = np.stack(frame["topic_scores"]).astype(float)
    shares = scores / scores.sum(axis=1, keepdims=True)
    best = [names[i] for i in scores.argmax(axis=1)]
    assert metrics["heads"]["topic"]["accuracy"] == pytest.approx(accuracy_score(frame["topic_true"], best))
    assert metrics["heads"]["topic"]["nll"] == pytest.approx(
        log_loss(frame["topic_true"], shares[:, np.argsort(names)], labels=sorted(names)), rel=1e-4
    )
    true = np.array([[mood in found for mood in MOODS] for found in frame["mood_true"]])
    chosen = np.stack(frame["mood_scores"]) >= 0.5
    assert metrics["heads"]["mood"]["micro_f1"] == pytest.approx(f1_score(true, chosen, average="micro"))
    error = mean_absolute_error(frame["stars_true"], frame["stars_value"])
    assert metrics["heads"]["stars"]["mae"] == pytest.approx(error, rel=1e-5)
    sources = {str(path): pandas.read_json(path, lines=True) for path in tmp_path.glob("*.jsonl")}
    assert set(frame["file"]) == set(sources)
    joined = [sources[file].iloc[row - 1] for file, row in zip(frame["file"], frame["row"], strict=True)]
    assert [found["text"] for found in joined] == frame["text"].tolist()
    assert len({found["id"] for found in joined}) == len(frame) == 70
    assert set(frame["split"]) == {"evaluation"}


def test_a_slice_drops_nothing_silently(base_checkpoint: Path, tmp_path: Path) -> None:
    """Rare values and those beyond the most frequent are counted, with the options for them; blanks are a value."""
    rows = write_rows(tmp_path / "rows.jsonl")
    for i, row in enumerate(rows):
        row["country"] = "fr" if i < 16 else "de" if i < 28 else None if i < 38 else "it" if i < 39 else "es"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output), "--slice", "country"]
    result = CliRunner().invoke(app, [*arguments, "--slice-values", "2"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert {value: found["rows"] for value, found in metrics["slices"]["country"].items()} == {"fr": 16, "de": 12}
    sentence = (
        "3 of 5 values, 12 of 40 rows, are not shown: 2 with fewer than 10 rows each (2 rows) and 1 less frequent ones "
        "(10 rows); --slice-rows 1 --slice-values 5 shows all."
    )
    assert metrics["slice_notes"] == {"country": sentence}
    assert sentence in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--slice-rows", "1", "--slice-values", "5"])
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    shown = {value: found["rows"] for value, found in metrics["slices"]["country"].items()}
    assert shown == {"fr": 16, "de": 12, "(no value)": 10, "it": 1, "es": 1}
    assert metrics["slice_notes"] == {}
    assert "and at the slices of" in (output / "README.md").read_text(encoding="utf-8")


def test_the_rows_that_were_measured_are_named(base_checkpoint: Path, tmp_path: Path) -> None:
    """One sentence on the terminal, in metrics.json and in the card; a file that training had is no fair test."""
    write_rows(tmp_path / "rows.jsonl")
    output = tmp_path / "report"
    for use, expected in (
        ("train", "in data.train and trained on most of its rows, so the scores are too good."),
        ("validation", "in data.validation and chose its best weights and calibration on it, so"),
        ("test", "as its test rows, on which nothing was chosen."),
        ("other", "Whether the model was trained on some of them is not known."),
    ):
        data: dict[str, object] = {use: str(tmp_path / "*.jsonl")} if use != "other" else {}
        checkpoint = recorded_checkpoint(base_checkpoint, tmp_path / use, data, column="topic")
        result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)])
        assert result.exit_code == 0, result.output
        sentence = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["measured_on"]
        assert sentence.startswith(f"Measured on 40 rows of {tmp_path / 'rows.jsonl'}.")
        assert expected in sentence
        assert sentence in result.stdout
        assert expected in html.unescape((output / "README.md").read_text(encoding="utf-8"))
    assert "slices" not in (output / "README.md").read_text(encoding="utf-8")


def test_the_majority_of_training_is_compared(base_checkpoint: Path, tmp_path: Path) -> None:
    """The checkpoint records the constant answers; what a stranger writes there is no answer, and no error."""
    rows = write_rows(tmp_path / "rows.jsonl")
    checkpoint = Path(shutil.copytree(base_checkpoint, tmp_path / "checkpoint"))
    output = tmp_path / "report"
    arguments = [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)]
    constants: dict[str, object] = {"topic": {"labels": ["sport"]}, "stars": {"median": 2.0, "mean": 1.5}}
    (checkpoint / "metrics.json").write_text(json.dumps({"constants": constants}), encoding="utf-8")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    found = metrics["baselines"]
    assert found["topic"]["majority"]["accuracy"] == pytest.approx(13 / 40)
    assert found["stars"]["majority"]["mae"] == pytest.approx(
        np.mean([abs(float(str(row["stars"])) - 2) for row in rows])
    )
    assert found["stars"]["majority"]["rmse"] == pytest.approx(
        np.sqrt(np.mean([(float(str(row["stars"])) - 1.5) ** 2 for row in rows]))
    )
    assert "linear model is not compared here" in metrics["baselines_note"]
    for hostile in (
        {"topic": {"labels": ["no such"]}, "planet": {"labels": []}},
        {"topic": {"labels": 3}},
        {"stars": {"labels": ["a"]}},
        [1],
    ):
        (checkpoint / "metrics.json").write_text(json.dumps({"constants": hostile}), encoding="utf-8")
        assert CliRunner().invoke(app, arguments).exit_code == 0


def test_a_config_leaves_baselines_and_suspects_out(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training, by the keys of its report."""
    write_rows(tmp_path / "rows.jsonl")
    checkpoint = Path(shutil.copytree(base_checkpoint, tmp_path / "checkpoint"))
    constants = {"topic": {"labels": ["sport"]}}
    (checkpoint / "metrics.json").write_text(json.dumps({"constants": constants}), encoding="utf-8")
    config = tmp_path / "my.toml"
    config.write_text(
        'output = "x"\n[data]\ntrain = "unused"\n[report]\nbaselines = false\nsuspects = false\n'
        '[[heads]]\nname = "topic"\nkind = "single_label"\n',
        encoding="utf-8",
    )
    monkeypatch.delattr(evaluation, "find_suspects")
    output = tmp_path / "report"
    arguments = [str(checkpoint), str(tmp_path / "rows.jsonl"), "--config", str(config), "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["baselines"], metrics["baselines_note"]) == ({}, "")
    assert not len(pandas.read_csv(output / "suspects.csv"))
