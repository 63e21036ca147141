"""An answer log in training: measured by ``polyhead-evaluate``, and turned into a file to label."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

from polyhead.decode import DecodeOptions
from polyhead.identity import checkpoint_id
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_serving.answer_log import AnswerLog, AnswerLogConfig
from polyhead_training import evaluate
from polyhead_training.data.answer_log import LoggedScores
from polyhead_training.dataset import app as dataset
from polyhead_training.errors import DataError
from polyhead_training.evaluate_command import app
from tests.tiny import TEXTS, write_tiny_checkpoint

KEY = "a secret of 24 characters"
TOPICS, MOODS = ("news", "sport", "science"), ("happy", "sad", "angry", "calm")


def write_log(
    folder: Path, checkpoint: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, form: str = "plain"
) -> None:
    """The log of a server that has answered these texts, written by the server's own code."""
    monkeypatch.setenv("POLYHEAD_ANSWER_LOG_KEY", KEY)
    given = {"answer_log": str(folder), "answer_log_share": "1", "answer_log_texts": form}
    config, predictor = AnswerLogConfig.read(given), Predictor.load(checkpoint)
    assert config is not None
    described = {"model": "m", "version": "1", "checkpoint": checkpoint_id(checkpoint)}
    log = AnswerLog(config, predictor, described, lambda counts: None, pytest.fail)
    rows = [text.encode() for text in texts]
    encoded = predictor.encode(rows)
    log.offer(rows, encoded, predictor.score(encoded), DecodeOptions(threshold=0.9, top_k=1), "")
    log.start()
    log.close()


def write_labelled(path: Path, texts: list[str]) -> None:
    """Rows with labels for all heads."""
    rows = [
        {"text": text, "topic": TOPICS[i % 3], "mood": [MOODS[i % 4]], "stars": float(i % 5)}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("form", ["plain", "hash"])
def test_logged_answers_are_measured_like_new_ones(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The metrics are those of the engine's own answers, bit by bit, whatever options the callers had."""
    texts = [f"{TEXTS[i % 10]} {i}" for i in range(20)]
    write_log(tmp_path / "log", base_checkpoint, texts, monkeypatch, form)
    write_labelled(tmp_path / "rows.jsonl", texts)
    new = evaluate(base_checkpoint, tmp_path / "rows.jsonl")
    logged = evaluate(
        base_checkpoint,
        tmp_path / "rows.jsonl",
        answers=str(tmp_path / "log"),
        answers_key=KEY if form == "hash" else None,
    )
    np.testing.assert_array_equal(logged.scores, new.scores)
    assert logged.metrics == new.metrics
    assert "the server logged from" in logged.measured_on


def test_rows_without_a_logged_answer_are_left_out(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted and said; half a line, another checkpoint's answers and errors are left out and said too."""
    texts = [f"{TEXTS[i % 10]} {i}" for i in range(20)]
    write_log(tmp_path / "log", base_checkpoint, [*texts[:12], " "], monkeypatch)
    (file,) = (tmp_path / "log").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    other = json.loads(lines[0]) | {"checkpoint": "0123456789abcdef"}
    file.write_bytes(b"".join([*lines, json.dumps(other).encode() + b"\n", lines[0][:100]]))
    (tmp_path / "log" / "answers-20990101T000000000000Z-00000000.jsonl").touch()  # killed before its first line
    write_labelled(tmp_path / "rows.jsonl", texts)
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "report")]
    result = CliRunner().invoke(app, [*arguments, "--answers", str(tmp_path / "log")])
    said = " ".join(result.output.split())
    assert result.exit_code == 0, result.output
    assert "8 of 20 rows have no logged answer and are left out" in said
    assert "1 lines are no whole entries of an answer log and are left out" in said
    assert "1 logged texts had no answer and are left out" in said
    assert "1 logged answers are of other checkpoints and are left out" in said
    assert pandas.read_parquet(tmp_path / "report" / "predictions.parquet")["text"].tolist() == texts[:12]
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["rows"] == 12


def test_why_a_log_has_no_answers_is_said(
    base_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes without a key, a wrong key, other texts, another checkpoint: each has its own sentence."""
    schema = Predictor.load(base_checkpoint).schema
    write_log(tmp_path / "hashed", base_checkpoint, ["Rain."], monkeypatch, "hash")
    write_log(tmp_path / "plain", base_checkpoint, ["Rain."], monkeypatch)
    other = tmp_path / "other"
    write_tiny_checkpoint(other, seed=1)
    cases = [
        ("hashed", base_checkpoint, "Rain.", None, "--answers-key must be the server's"),
        ("hashed", base_checkpoint, "Rain.", "another key", "or --answers-key is not the server's"),
        ("plain", base_checkpoint, "Snow.", None, "none of its 1 answers of this checkpoint is to a text of these"),
        ("plain", other, "Rain.", None, f"only of {checkpoint_id(base_checkpoint)} \\(1\\)"),
    ]
    for folder, checkpoint, text, key, said in cases:
        with pytest.raises(DataError, match=said):
            LoggedScores([str(tmp_path / folder)], checkpoint, schema, [text], key)


def test_the_rest_of_a_large_head_shares_what_is_left(tmp_path: Path) -> None:
    """Of a head with more labels than are logged, the others get the same part of the remaining score."""
    schema = Schema([Head(name="many", kind="single_label", labels=("a", "b", "c", "d"))])
    write_tiny_checkpoint(tmp_path / "checkpoint", schema=schema)
    entry = {
        "time": "2026-01-01T00:00:00.000Z", "model": "m", "version": "1", "text": "x",
        "checkpoint": checkpoint_id(tmp_path / "checkpoint"), "answers": {"many": "c"},
        "scores": {"many": {"c": 0.7, "a": 0.2}},
    }  # fmt: skip
    (tmp_path / "log.jsonl").write_text(json.dumps(entry) + "\n")
    found = LoggedScores([str(tmp_path / "log.jsonl")], tmp_path / "checkpoint", schema, ["x"], None)
    np.testing.assert_allclose(found.scores(["x"]), [[0.2, 0.05, 0.7, 0.05]], rtol=1e-6)


def entry(text: str, topic: str | None, score: float, margin: float, tags: float, **more: Any) -> dict[str, Any]:
    """A logged answer of two heads, as the server writes it."""
    best = topic or "news"
    return {
        "time": "2026-01-01T00:00:00.000Z", "model": "m", "version": "3", "checkpoint": "abc", "text": text,
        "token_count": 3, "truncated": False, "answers": {"topic": topic, "tags": ["x"], "stars": 2.5},
        "scores": {"topic": {best: score, "else": score - margin}, "tags": {"x": 0.5 + tags}},
        "margins": {"topic": margin, "tags": tags},
    } | more  # fmt: skip


ENTRIES = [
    entry("sure", "sport", 0.9, 0.8, 0.4),
    entry("close", "sport", 0.5, 0.01, 0.3),
    entry("low", "sport", 0.3, 0.25, 0.45),
    entry("rejected", None, 0.4, 0.2, 0.35),
    entry("threshold", "sport", 0.8, 0.6, 0.02),
    entry("close", "news", 0.5, 0.05, 0.3, time="2026-01-02T00:00:00.000Z", request_id="r-2"),
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Six answers to five texts."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ENTRIES) + '{"time": "2026', encoding="utf-8")
    return path


def chosen(log: Path, name: str, *options: str) -> list[dict[str, str]]:
    """The rows of the CSV that the command writes."""
    output = log.with_name(name)
    result = CliRunner().invoke(dataset, ["from-log", str(log), str(output), *options])
    assert result.exit_code == 0, result.output
    assert "1 lines are no whole entries" in result.output
    return list(csv.DictReader(output.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--head", "topic"], ["close", "rejected", "low", "threshold", "sure"]),
        (["--head", "topic", "--by", "score"], ["low", "rejected", "close", "threshold", "sure"]),
        (["--head", "tags"], ["threshold", "close", "rejected", "sure", "low"]),
        (["--by", "rejected"], ["rejected"]),
        (["--count", "2"], ["threshold", "close"]),
    ],
)
def test_the_least_sure_come_first(log: Path, options: list[str], wanted: list[str]) -> None:
    """In the order of margins, scores or thresholds; with several heads the least sure of each come first."""
    assert [row["text"] for row in chosen(log, "a.csv", *options)] == wanted


def test_the_file_to_label(log: Path) -> None:
    """Each text is there once, with empty columns to fill in, and the last answer beside them."""
    first, second = chosen(log, "a.csv", "--head", "topic", "--count", "2")
    assert first == {
        "text": "close", "topic": "", "topic_suggested": "news", "topic_score": "0.5", "topic_margin": "0.05",
        "times_logged": "2", "time": "2026-01-02T00:00:00.000Z", "version": "3", "request_id": "r-2",
    }  # fmt: skip
    assert (second["text"], second["topic_suggested"], second["topic_score"]) == ("rejected", "news", "0.4")
    CliRunner().invoke(dataset, ["from-log", str(log), str(log.with_name("b.jsonl")), "--count", "1"])
    row = json.loads(log.with_name("b.jsonl").read_text(encoding="utf-8"))
    assert (row["text"], row["tags"], row["tags_suggested"]) == ("threshold", None, ["x"])


def test_fields_become_columns(tmp_path: Path) -> None:
    """A text that was made of fields is labelled as its fields, which training makes the same text of."""
    fields = {"Title": "Coat", "Body": "Warm."}
    (tmp_path / "log.jsonl").write_text(json.dumps(entry("Coat. Warm.", "x", 0.5, 0.1, 0.1, fields=fields)) + "\n")
    result = CliRunner().invoke(dataset, ["from-log", str(tmp_path / "log.jsonl"), str(tmp_path / "a.csv")])
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines())
    assert (row["Title"], row["Body"], "text" in row) == ("Coat", "Warm.", False)


def test_mistakes_are_said_and_nothing_is_replaced(log: Path) -> None:
    """An output that exists, an unknown head, a log of hashes, a name without a format: one line and exit code 2."""
    taken, hashes = log.with_name("taken.csv"), log.with_name("hashes.jsonl")
    taken.write_text("labels of a week", encoding="utf-8")
    hashed = {key: value for key, value in ENTRIES[0].items() if key != "text"} | {"text_hash": "ab"}
    hashes.write_text(json.dumps(hashed) + "\n", encoding="utf-8")
    cases = [
        ([log, taken], "exists and is not replaced"),
        ([log, log.with_name("b.csv"), "--head", "stars"], "--head stars: the log has answers of topic, tags"),
        ([hashes, log.with_name("c.csv")], "without their texts"),
        ([log, log.with_name("d")], "the name must end in one of"),
    ]
    for arguments, said in cases:
        result = CliRunner().invoke(dataset, ["from-log", *map(str, arguments)])
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert taken.read_text(encoding="utf-8") == "labels of a week"
