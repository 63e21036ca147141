"""The scorer with the engine, without Ray: partitions in, parts out, answers as the predictor gives them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from polyhead.decode import DecodeOptions
from polyhead.predictor import Predictor
from polyhead_scoring import ScoringError, scorer
from polyhead_scoring.job import Request, describe_file, job_of
from polyhead_scoring.partition import Partition
from polyhead_scoring.run import checkpoint_model, make_plan
from polyhead_scoring.run_folder import RunFolder
from polyhead_scoring.scorer import EngineAnswers, Scorer, output_schema
from tests.scoring.test_partition import job_over
from tests.scoring.texts import BAD_LINES, plain_rows, write_jsonl
from tests.tiny import SCHEMA


def scorer_of(checkpoint: Path, file: Path, output: Path, **fields: Any) -> tuple[Scorer, list[Partition]]:
    """A scorer, and the partitions of a file."""
    request = Request(data=(str(file),), output=str(output), checkpoint=checkpoint, precision="fp32", **fields)
    model = checkpoint_model(request)
    folder = RunFolder(str(output), one_file=False)
    job = job_of(request, (describe_file(str(file)),), model.answers_from, one_file=False)
    folder.begin(job, restart=False)
    partitions, kept = make_plan(request, job, model, folder, Console(quiet=True))
    answers = EngineAnswers(checkpoint, "cpu", "fp32", DecodeOptions(top_k=job.top_k, threshold=job.threshold), 1)
    return Scorer(job, model.heads, kept, folder, answers), partitions


def test_answers_are_the_predictors(base_checkpoint: Path, tmp_path: Path) -> None:
    """Columns hold what `predict` says; a bad row has its reason, also in the file of failed rows, and else nulls."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(30))
    with file.open("ab") as more:
        more.write(b"\n".join(BAD_LINES))
    one, partitions = scorer_of(base_checkpoint, file, tmp_path / "out", partition_tokens=200)
    done = list(one.run(partitions))
    assert len(done) == len(partitions) > 3
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    answers = Predictor.load(base_checkpoint).predict([row["text"] for row in plain_rows(30)])
    for row, plain, answer in zip(rows, plain_rows(30), answers, strict=False):
        assert {name: row[name] for name in plain} == plain
        heads = answer["heads"]
        assert row["topic_label"] == heads["topic"]["labels"][0]
        assert row["topic_score"] == pytest.approx(heads["topic"]["scores"][0], abs=1e-5)
        assert row["mood_labels"] == heads["mood"]["labels"]
        assert row["mood_scores"] == pytest.approx(heads["mood"]["scores"], abs=1e-5)
        assert row["stars_value"] == pytest.approx(heads["stars"]["value"], abs=1e-4)
        assert (row["token_count"], row["truncated"]) == (answer["token_count"], answer["truncated"])
        assert row["error"] is None
    failed = [
        json.loads(line)
        for path in sorted((tmp_path / "out" / "_run" / "errors").iterdir())
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert sum(each.errors for each in done) == len(failed) == len(BAD_LINES)
    for row, aside, (line, reason) in zip(rows[30:], failed, BAD_LINES.items(), strict=True):
        assert reason in row["error"]
        assert {row[name] for name in ("topic_label", "mood_labels", "stars_value", "token_count")} == {None}
        assert (aside["reason"], aside["file"]) == (row["error"], str(file))
        assert aside["line"] == aside["row"] > 30
        assert "raw" in aside or aside["input"] == json.loads(line)


def test_a_task_done_twice_writes_the_same(base_checkpoint: Path, tmp_path: Path) -> None:
    """Byte for byte, with the note's checksum, and nothing else is left."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(20))
    one, partitions = scorer_of(base_checkpoint, file, tmp_path / "out")
    (done,) = one.run(partitions)
    first = (tmp_path / "out" / done.output).read_bytes()
    assert list(one.run(partitions)) == [done]
    assert (tmp_path / "out" / done.output).read_bytes() == first
    assert (hashlib.sha256(first).hexdigest(), len(first)) == (done.sha256, done.size)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_run", "part-000000.parquet"}
    assert one.folder.finished() == {0: done}


def test_texts_are_scored_in_chunks(base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk has more text than it may, and the answers do not depend on where chunks end."""
    answers = EngineAnswers(base_checkpoint, "cpu", "fp32", DecodeOptions())
    texts = [*(row["text"] for row in plain_rows(60)), "word " * 100]
    (whole,) = answers.answer([texts])
    monkeypatch.setattr(scorer, "CHUNK_CHARACTERS", 200)
    chunks = []

    class Watched(Predictor):
        def encode(self, texts: Any) -> Any:
            chunks.append(texts)
            return super().encode(texts)

    answers.predictor = Watched(answers.predictor.checkpoint)
    for answers.predictor.tokenizes_ahead in (False, True):  # as on a CPU and as on a GPU
        none_before, cut, none, some = answers.answer([[], texts, [], texts[:1]])
        assert len(chunks) > 5
        assert all(sum(map(len, chunk)) <= 200 or len(chunk) == 1 for chunk in chunks)
        assert [a["heads"]["topic"]["labels"] for a in cut] == [a["heads"]["topic"]["labels"] for a in whole]
        assert [a["token_count"] for a in cut] == [a["token_count"] for a in whole]
        assert (none_before, none) == ([], [])
        assert [a["token_count"] for a in some] == [a["token_count"] for a in whole[:1]]


def test_columns_that_parquet_lacks(tmp_path: Path) -> None:
    """A column of a type that a part cannot hold is refused before anything is scored."""
    job = job_over(write_jsonl(tmp_path / "rows.jsonl", []))
    kept = pyarrow.schema([("span", pyarrow.month_day_nano_interval())])
    with pytest.raises(ScoringError, match=r"Parquet, .* month_day_nano_interval.* --keep"):
        output_schema(kept, SCHEMA.to_json(), job)


def test_top_k_gives_lists(base_checkpoint: Path, tmp_path: Path) -> None:
    """With top_k a head of one label names several; a threshold of 0 lets all labels through; a prefix is for all."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(5))
    one, partitions = scorer_of(base_checkpoint, file, tmp_path / "out", top_k=2, threshold=0.0, prefix="new_")
    list(one.run(partitions))
    row = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()[0]
    assert len(row["new_topic_labels"]) == len(row["new_topic_scores"]) == len(row["new_mood_labels"]) == 2
    assert row["new_topic_label"] == row["new_topic_labels"][0]


def test_a_name_stands_for_one_column(tmp_path: Path) -> None:
    """An input column that is called as an answer's is refused, with the way out."""
    heads = SCHEMA.to_json()
    for name, prefix in (("error", ""), ("topic_label", ""), ("p_topic_label", "p_")):
        job = job_over(write_jsonl(tmp_path / "rows.jsonl", []), prefix=prefix)
        with pytest.raises(ScoringError, match=f"already has a column '{name}'.* --prefix"):
            output_schema(pyarrow.schema([(name, pyarrow.string())]), heads, job)
