"""``polyhead-evaluate``: what is evaluated is what is served."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error
from typer.testing import CliRunner

from polyhead.distribution import Distribution
from polyhead.predictor import NOT_FINITE, Predictor
from polyhead_training.evaluate_command import app, recorded_training
from tests.tiny import OVERFLOWING, SCHEMA, TEXTS, overflow, write_tiny_checkpoint

TOPICS, MOODS = ("news", "sport", "science"), ("happy", "sad", "angry", "calm")


def write_rows(path: Path, **columns: str) -> list[dict[str, object]]:
    """Forty labelled rows, of a country each; columns may be renamed."""
    rows: list[dict[str, object]] = [
        {
            "text": f"{TEXTS[i % len(TEXTS)]} {i}",
            "topic": TOPICS[i % 3],
            "mood": [mood for j, mood in enumerate(MOODS) if i >> j & 1],
            "stars": float(i % 5),
            "country": "fr" if i % 4 else "de",
            "price": float(i),
        }
        for i in range(40)
    ]
    named = [{columns.get(key, key): value for key, value in row.items()} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    return rows


def test_what_is_evaluated_is_what_is_served(base_checkpoint: Path, tmp_path: Path) -> None:
    """The metrics are scikit-learn's of the predictor's own answers, and the answers are those in the Parquet file."""
    rows = write_rows(tmp_path / "rows.jsonl")
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)]
    result = CliRunner().invoke(app, [*arguments, "--slice", "country", "--slice", "price", "--slice", "price"])
    assert result.exit_code == 0, result.output
    served = Predictor.load(base_checkpoint).predict([str(row["text"]) for row in rows])
    answers = [answer["heads"] for answer in served]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    topics, named = [row["topic"] for row in rows], [answer["topic"]["labels"][0] for answer in answers]
    assert metrics["heads"]["topic"]["accuracy"] == pytest.approx(accuracy_score(topics, named))
    true, chosen = (
        np.array([[mood in found for mood in MOODS] for found in each])
        for each in ([row["mood"] for row in rows], [answer["mood"]["labels"] for answer in answers])
    )
    assert metrics["heads"]["mood"]["micro_f1"] == pytest.approx(f1_score(true, chosen, average="micro"))
    error = mean_absolute_error([row["stars"] for row in rows], [answer["stars"]["value"] for answer in answers])
    assert metrics["heads"]["stars"]["mae"] == pytest.approx(error, rel=1e-5)
    german = [i for i, row in enumerate(rows) if row["country"] == "de"]
    assert metrics["slices"]["country"]["de"]["rows"] == len(german) == 10
    assert metrics["slices"]["country"]["de"]["heads"]["topic"]["accuracy"] == pytest.approx(
        accuracy_score([topics[i] for i in german], [named[i] for i in german])
    )
    assert [found["rows"] for found in metrics["slices"]["price"].values()] == [10] * 4
    said = Distribution.read(output / "distribution.json", SCHEMA)
    assert said.counts["answers"]["topic"] == dict.fromkeys(TOPICS, 0) | Counter(named)
    assert said.labels["topic"][0] == Counter(named).most_common(1)[0][0]
    table = pandas.read_parquet(output / "predictions.parquet")
    assert table["text"].tolist() == [row["text"] for row in rows]
    assert table["topic_label"].tolist() == named
    assert said.edges["stars"] == pytest.approx(table["stars_value"].quantile(np.arange(1, 10) / 10), rel=1e-4)
    assert table["topic_true"].tolist() == topics
    assert [list(found) for found in table["mood_labels"]] == [answer["mood"]["labels"] for answer in answers]
    assert table["truncated"].sum() == metrics["truncated"] > 0


def test_a_text_whose_scores_overflow_has_an_error(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """It is in no metric; it is counted, said, and the last row of the predictions, with an error and its labels."""
    checkpoint = damaged()
    overflow(checkpoint)
    rows = write_rows(tmp_path / "rows.jsonl")
    rows[3]["text"] = OVERFLOWING
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "report"
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert f"1 left out because {NOT_FINITE}" in " ".join(result.output.split())
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["rows"], metrics["failed"]) == (39, 1)
    table = pandas.read_parquet(output / "predictions.parquet")
    assert table["error"].isna().tolist() == [True] * 39 + [False]
    last = table.iloc[-1]
    assert (last["text"], last["topic_true"], last["error"]) == (OVERFLOWING, rows[3]["topic"], NOT_FINITE)
    assert pandas.isna(last["topic_label"])
    for row in rows:
        row["text"] = OVERFLOWING
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    refused = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)])
    assert (refused.exit_code, "no row has a text that can be answered" in refused.stderr) == (2, True)


@pytest.mark.parametrize("is_config_edited", [True, False])
def test_evaluation_proves_the_checkpoint_first(
    damaged: Callable[[], Path], tmp_path: Path, is_config_edited: bool
) -> None:
    """Exchanged labels, and weights that no longer give the golden scores, are refused before anything is answered."""
    checkpoint = damaged()
    if is_config_edited:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        config["polyhead"]["heads"][0]["labels"].reverse()
        (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    else:
        tensors = load_file(checkpoint / "model.safetensors")
        tensors["head.weight"][0, 0] += 1
        save_file(tensors, checkpoint / "model.safetensors")
    write_rows(tmp_path / "rows.jsonl")
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")])
    assert (result.exit_code, "golden.jsonl:" in result.stderr) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_a_template_is_rendered_as_serving_does(tmp_path: Path) -> None:
    """The model's own template comes before a config's; --text-column reads finished texts and says so."""
    write_tiny_checkpoint(tmp_path / "model", text_template="[[{country}: ]]{text}")
    rows = write_rows(tmp_path / "rows.jsonl")
    config = 'output = "x"\n[data]\ntrain = "unused"\ntext_template = "{text} {country}"\n'
    config += '[[heads]]\nname = "topic"\nkind = "single_label"\n'
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    arguments = [str(tmp_path / "model"), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "report")]
    for options in ([], ["--config", str(tmp_path / "config.toml")]):
        result = CliRunner().invoke(app, [*arguments, *options])
        assert result.exit_code == 0, result.output
        assert "finished text" not in result.output
        table = pandas.read_parquet(tmp_path / "report" / "predictions.parquet")
        assert table["text"].tolist() == [f"{row['country']}: {row['text']}" for row in rows]
    sent = [json.dumps({"country": row["country"], "text": row["text"]}) for row in rows]
    answers = Predictor.load(tmp_path / "model").predict(sent)
    assert table["topic_label"].tolist() == [answer["heads"]["topic"]["labels"][0] for answer in answers]
    result = CliRunner().invoke(app, [*arguments, "--text-column", "text"])
    assert "note: column 'text' is read as finished text" in result.output
    assert pandas.read_parquet(tmp_path / "report" / "predictions.parquet")["text"].tolist() == [
        row["text"] for row in rows
    ]


def test_columns_are_those_of_training(base_checkpoint: Path, tmp_path: Path) -> None:
    """A config names text and label columns and rows to leave out; a head whose column is not there is left out."""
    write_rows(tmp_path / "rows.jsonl", text="review", topic="area", stars="grade")
    config = tmp_path / "my.toml"
    config.write_text(
        'output = "x"\n[data]\ntrain = "unused"\ntext_column = "review"\n'
        'where = { country = "fr" }\n[[heads]]\nname = "topic"\nkind = "single_label"\ncolumn = "area"\n',
        encoding="utf-8",
    )
    output = tmp_path / "report"
    environment = {"POLYHEAD_EVALUATE_CONFIG": str(config), "POLYHEAD_EVALUATE_OUTPUT": str(output)}
    environment["POLYHEAD_EVALUATE_WITHOUT"] = "stars"
    result = CliRunner(env=environment).invoke(app, [str(base_checkpoint), str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 0, result.output
    heads = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["heads"]
    assert (heads["topic"]["rows"], heads["mood"]["rows"], heads["stars"]) == (30, 30, {"rows": 0})
    assert "0 unreadable, 10 left out by where and filters" in result.output


def recorded_checkpoint(source: Path, folder: Path, data: dict[str, object], **head: object) -> Path:
    """A copy of a checkpoint with a training config in its report, as training writes it."""
    checkpoint = Path(shutil.copytree(source, folder))
    recorded = {
        "output": "x",
        "data": {"train": "unused"} | data,
        "heads": [{"name": "topic", "kind": "single_label", "column": "area"} | head],
    }
    (checkpoint / "report").mkdir(exist_ok=True)
    (checkpoint / "report" / "training.json").write_text(json.dumps(recorded), encoding="utf-8")
    return checkpoint


def test_columns_and_named_transforms_are_the_checkpoints(base_checkpoint: Path, tmp_path: Path) -> None:
    """Without a config the recorded one is taken; its augmentations, which are training's alone, are not called."""
    write_rows(tmp_path / "rows.jsonl", text="review", topic="area")
    data = {"text_column": "review", "text_transforms": ["lowercase"], "augment": ["no_such_module:function"]}
    checkpoint = recorded_checkpoint(base_checkpoint, tmp_path / "checkpoint", data, label_transforms=["strip"])
    output = tmp_path / "report"
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)])
    assert result.exit_code == 0, result.output
    heads = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["heads"]
    assert (heads["topic"]["rows"], heads["stars"]["rows"]) == (40, 40)


def test_cells_mean_what_they_meant_in_training(base_checkpoint: Path, tmp_path: Path) -> None:
    """The recorded config says how; notes say what was assumed; a label that looks alike is named with its key."""
    rows = [
        {"text": text, "area": f"['{TOPICS[i % 3]}']" if i else "N/A", "mood": ["sad"], "stars": i}
        for i, text in enumerate(TEXTS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    checkpoint = recorded_checkpoint(base_checkpoint, tmp_path / "checkpoint", {})
    arguments = [str(checkpoint), str(path), "--output", str(tmp_path / "report")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "note: head 'topic', column 'area': 1 times 'N/A' (1) means unknown" in said
    assert f"{len(rows) - 1} texts were read as lists" in said
    path.write_text(json.dumps({"text": "one", "area": "News"}) + "\n", encoding="utf-8")
    result = CliRunner().invoke(app, [*arguments, "--without", "mood", "--without", "stars"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert (
        "1 of 1 rows have labels that training never saw; they count as wrong: 'News' (1); it looks like 'news'" in said
    )
    assert 'label_transforms = ["lowercase"]' in said


def test_a_file_that_a_checkpoint_names_is_not_read(base_checkpoint: Path, tmp_path: Path) -> None:
    """Training records names, never the file that they came from."""
    write_rows(tmp_path / "rows.jsonl")
    checkpoint = recorded_checkpoint(base_checkpoint, tmp_path / "checkpoint", {}, names="/etc/passwd")
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "r")])
    assert result.exit_code == 2
    assert "heads.topic.names names a file; a file that a checkpoint names is not read" in result.stderr


@pytest.mark.parametrize(
    ("data", "head", "field"),
    [
        ({"text_transforms": ["strip", "planted:run"]}, {}, "data.text_transforms"),
        ({"filters": ["planted:run"]}, {}, "data.filters"),
        ({}, {"label_transforms": ["planted:run"]}, "heads.topic.label_transforms"),
    ],
)
def test_a_checkpoint_runs_no_code(
    base_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, object],
    head: dict[str, object],
    field: str,
) -> None:
    """A function that its recorded config names is refused with one line, and its module is not even imported."""
    write_rows(tmp_path / "rows.jsonl")
    trace = tmp_path / "was_imported"
    (tmp_path / "planted.py").write_text(f"open({str(trace)!r}, 'w')\nrun = len\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = recorded_checkpoint(base_checkpoint, tmp_path / "checkpoint", data, **head)
    output = tmp_path / "report"
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)])
    assert result.exit_code == 2, result.output
    assert result.stderr == (
        f"polyhead-evaluate: {checkpoint}/report/training.json: {field} names the function 'planted:run'; code "
        "that a checkpoint names is not run, so give your own training config with --config\n"
    )
    assert not trace.exists()
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report/history.json", {"epoch": 1}),
        ("report/history.json", [{"loss": 1.0}]),
        ("report/history.json", [{"epoch": 1, "loss": "<b>low</b>"}]),
        ("report/history.json", [3]),
        ("metrics.json", []),
        ("metrics.json", {"training": [1], "calibration": {"topic": {"temperature": 2.0}}}),
        ("metrics.json", {"training": {"rows": "**all**"}, "calibration": {"topic": 3}}),
    ],
)
def test_what_a_stranger_says_of_training_is_left_out(tmp_path: Path, name: str, content: object) -> None:
    """Unless it is as training writes it."""
    (tmp_path / "report").mkdir()
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert not any(recorded_training(tmp_path).values())


def test_what_training_writes_of_itself_is_read(tmp_path: Path) -> None:
    """Curves, calibration and numbers, unchanged."""
    history = [{"epoch": 0.5, "loss": 2.0, "step": 3}, {"epoch": 1.0, "eval_topic/accuracy": 0.5}]
    fitted = {"rows": 3, "temperature": 2.0, "before": {"nll": 1.0}, "after": {"nll": 0.5}}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "history.json").write_text(json.dumps(history), encoding="utf-8")
    metrics = {"training": {"rows": 7, "precision": "fp32"}, "calibration": {"topic": fitted}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    expected = {"history": history, "calibration": {"topic": fitted}, "training": {"rows": 7}}
    assert recorded_training(tmp_path) == expected


def test_options_say_how_files_are_read(base_checkpoint: Path, tmp_path: Path) -> None:
    """A semicolon file without a header, in an old encoding, with a row that is left out and counted."""
    lines = [f"The striker scored {i} times in the caf\u00e9;{TOPICS[i % 3]}" for i in range(12)] + ["one;two;three"]
    (tmp_path / "rows.csv").write_bytes("\n".join(lines).encode("cp1252"))
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "rows.csv"), "--output", str(output), "--delimiter", ";"]
    arguments += ["--encoding", "cp1252", "--no-header", "--columns", "text,topic", "--without", "mood"]
    arguments += ["--without", "stars"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Of 13 rows, 1 cannot be used: correct them, or leave them out with --bad-rows skip" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--bad-rows", "skip"])
    assert result.exit_code == 0, result.output
    assert '1 unreadable (1 of them bad rows, left out by bad_rows = "skip")' in result.output
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8"))["rows"] == 12
    table = pandas.read_parquet(output / "predictions.parquet")
    expected = ["file", "row", "split", "text", "topic_label", "topic_score", "mood_labels", "stars_value"]
    expected += ["token_count", "truncated", "error", "topic_true", "mood_true", "stars_true"]
    expected += ["topic_scores", "mood_scores"]
    assert list(table.columns) == expected


def test_how_training_files_are_read_is_no_rule_for_other_formats(base_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint that was trained on a CSV with semicolons is evaluated on JSON lines."""
    write_rows(tmp_path / "rows.jsonl")
    data: dict[str, object] = {"format": "csv", "delimiter": ";", "header": False, "columns": ["text", "topic"]}
    checkpoint = recorded_checkpoint(base_checkpoint, tmp_path / "checkpoint", data, column="topic")
    output = tmp_path / "report"
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)])
    assert result.exit_code == 0, result.output


def test_a_missing_column_of_labels_is_an_error(base_checkpoint: Path, tmp_path: Path) -> None:
    """One line names the columns that are there; --without leaves the head out of every table."""
    write_rows(tmp_path / "rows.jsonl", topic="Topic")
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, output.exists()) == (2, False)
    assert "has no column 'topic', only text, Topic, mood, stars, country, price; " in result.stderr
    assert "--without topic leaves this head out" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(app, [*arguments, "--without", "topic", "--slice", "country"])
    assert result.exit_code == 0, result.output
    assert "topic" not in result.stdout
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.count("topic") == page.count("Not evaluated: <bdi>topic</bdi>") == 1
    assert "| `topic` | rows |" not in (output / "README.md").read_text(encoding="utf-8")
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8"))["left_out"] == ["topic"]


def test_an_older_report_is_replaced_and_nothing_else(base_checkpoint: Path, tmp_path: Path) -> None:
    """A folder that is no report is left as it is."""
    write_rows(tmp_path / "rows.jsonl")
    output = tmp_path / "report"
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(output)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (output / "index.html").unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"polyhead-evaluate: .*report: holds something that is no report.*\n", result.stderr)
    assert (output / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "rows.jsonl"], "nowhere: is not a checkpoint folder; it does not exist"),
        (["CHECKPOINT", "none.jsonl"], "none.jsonl"),
        (["CHECKPOINT", "rows.jsonl", "--slice", "planet"], "'planet'"),
        (["CHECKPOINT", "rows.jsonl", "--device", "tpu"], "--device 'tpu': allowed are cpu and cuda"),
        (["CHECKPOINT", "rows.jsonl", "--config", "none.toml"], "none.toml"),
    ],
)
def test_mistakes_are_one_line(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """Exit code 2, one line that names what is wrong, and no folder."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl")
    result = CliRunner().invoke(app, [part.replace("CHECKPOINT", str(base_checkpoint)) for part in arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_help_teaches() -> None:
    """With an example and the name of each option's variable."""
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "polyhead-evaluate runs/reviews reviews-2024.csv --slice country" in shown
    for variable in ("OUTPUT", "SLICE", "CONFIG", "TEXT_COLUMN", "DELIMITER", "BAD_ROWS", "DEVICE"):
        assert f"POLYHEAD_EVALUATE_{variable}" in shown
