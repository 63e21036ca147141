"""The scorer, without Ray: partitions in, Parquet out, answers as the predictor gives them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from polyhead.decode import DecodeOptions
from polyhead.errors import PolyheadError
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_scoring import scorer
from polyhead_scoring.answers import output_schema
from polyhead_scoring.errors import ClusterError, InputError, OutputError
from polyhead_scoring.formats import FORMATS
from polyhead_scoring.partition import Limits, Partition
from polyhead_scoring.request import Request, prepare
from polyhead_scoring.scorer import TRIES, Scorer, Task, answer_texts
from tests.scoring.texts import BAD_LINES, plain_rows, write_jsonl
from tests.tiny import write_tiny_checkpoint


def scorer_of(checkpoint: Path, file: Path, output: Path, **fields: Any) -> tuple[Scorer, list[Partition]]:
    """A scorer, and the partitions of a file."""
    job, _, folder = prepare(
        Request(checkpoint=checkpoint, data=(str(file),), output=str(output), precision="fp32", **fields)
    )
    limits = Limits(tokens=job.partition_tokens, max_length=48, bytes_per_token=3.0)
    cut, found = FORMATS[job.format].survey(str(file), "text", limits)
    kept = FORMATS[job.format].schema_of([found]).serialize().to_pybytes()
    folder.begin(job, restart=False)
    partitions = [partition.model_copy(update={"number": number}) for number, partition in enumerate(cut)]
    return Scorer(Task(job=job, checkpoint=checkpoint, output=str(output), kept=kept, threads=1)), partitions


def test_answers_are_the_predictors(base_checkpoint: Path, tmp_path: Path) -> None:
    """Typed columns hold what `predict` says, and a bad row its reason; all other columns are null then."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(30))
    with file.open("ab") as more:
        more.write(b"\n".join(BAD_LINES))
    worker, partitions = scorer_of(base_checkpoint, file, tmp_path / "out", partition_tokens=200)
    done = worker({"partition": np.array([p.model_dump_json() for p in partitions])})["done"]
    assert len(done) == len(partitions) > 3
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    answers = Predictor.load(base_checkpoint).predict([row["text"] for row in plain_rows(30)])
    for row, plain, answer in zip(rows, plain_rows(30), answers, strict=False):
        assert {name: row[name] for name in plain} == plain
        heads = answer["heads"]
        assert row["predicted_topic"]["label"] == heads["topic"]["labels"][0]
        assert row["predicted_topic"]["score"] == pytest.approx(heads["topic"]["scores"][0], abs=1e-5)
        assert row["predicted_mood"]["labels"] == heads["mood"]["labels"]
        assert row["predicted_mood"]["scores"] == pytest.approx(heads["mood"]["scores"], abs=1e-5)
        assert row["predicted_stars"]["value"] == pytest.approx(heads["stars"]["value"], abs=1e-4)
        assert (row["token_count"], row["truncated"]) == (answer["token_count"], answer["truncated"])
        assert row["error"] is None
    for row, reason in zip(rows[30:], BAD_LINES.values(), strict=True):
        assert row["error"].startswith(reason)
        assert {row[name] for name in ("predicted_topic", "predicted_mood", "predicted_stars", "token_count")} == {None}


def test_a_task_done_twice_writes_the_same(base_checkpoint: Path, tmp_path: Path) -> None:
    """Byte for byte, with the note's checksum, and nothing else is left; one that always dies ends the run."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(20))
    worker, (partition,) = scorer_of(base_checkpoint, file, tmp_path / "out")
    done = worker.score(partition)
    first = (tmp_path / "out" / done.output).read_bytes()
    assert worker.score(partition) == done
    assert (tmp_path / "out" / done.output).read_bytes() == first
    assert (hashlib.sha256(first).hexdigest(), len(first)) == (done.sha256, done.size)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_run", "part-000000.parquet"}
    assert worker.folder.finished() == {0: done}
    for _ in range(TRIES - 2):
        worker.score(partition)
    with pytest.raises(ClusterError, match="processes died over them"):
        worker.score(partition)


def test_what_changed_is_not_scored(base_checkpoint: Path, tmp_path: Path) -> None:
    """A file with other rows than surveyed, and another checkpoint on a node, are errors that say so."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(20))
    worker, (partition,) = scorer_of(base_checkpoint, file, tmp_path / "out")
    write_jsonl(file, plain_rows(10))
    with pytest.raises(InputError, match="10 rows lie where 20 did"):
        worker.score(partition)
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    job = worker.job
    with pytest.raises(InputError, match="another checkpoint on this node"):
        Scorer(Task(job=job, checkpoint=tmp_path / "other", output="out", kept=b"", threads=1))


def test_blocks_are_cut_by_tokens(base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block has more tokens than it may, and the answers do not depend on where blocks and chunks end."""
    predictor = Predictor.load(base_checkpoint)
    texts = [row["text"] for row in plain_rows(60)]
    whole = list(answer_texts(predictor, texts, DecodeOptions()))
    monkeypatch.setattr(scorer, "BLOCK_TOKENS", 100)
    monkeypatch.setattr(scorer, "CHUNK_TEXTS", 7)
    monkeypatch.setattr(scorer, "CHUNK_BYTES", 500)
    blocks = []

    class Watched(Predictor):
        def score(self, encoded: Any) -> Any:
            blocks.append([text.token_count for text in encoded])
            return super().score(encoded)

    cut = list(answer_texts(Watched(predictor.checkpoint), texts, DecodeOptions()))
    assert len(blocks) > 5
    assert all(sum(block) <= 100 for block in blocks)
    assert [a["heads"]["topic"]["labels"] for a in cut] == [a["heads"]["topic"]["labels"] for a in whole]
    assert [a["token_count"] for a in cut] == [a["token_count"] for a in whole]


def test_top_k_gives_lists(base_checkpoint: Path, tmp_path: Path) -> None:
    """With top_k a head of one label names several; a threshold of 0 lets all labels through."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(5))
    worker, (partition,) = scorer_of(base_checkpoint, file, tmp_path / "out", top_k=2, threshold=0.0, prefix="")
    worker.score(partition)
    row = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()[0]
    assert len(row["topic"]["labels"]) == len(row["topic"]["scores"]) == len(row["mood"]["labels"]) == 2


def test_a_name_stands_for_one_column() -> None:
    """An input column that is called as an answer is refused, with the way out."""
    schema = Schema([Head(name="topic", kind="single_label", labels=("a", "b"))])
    for name, prefix in (("error", "p_"), ("topic", ""), ("p_topic", "p_")):
        with pytest.raises(OutputError, match=f"column '{name}' is in the input and among the answers"):
            output_schema(pyarrow.schema([(name, pyarrow.string())]), schema, DecodeOptions(), prefix)
    assert issubclass(OutputError, PolyheadError)
