"""The quality benchmark: its processes, what is run again, its peers, and a rehearsal of all data sets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from benchmarks.quality import linear
from benchmarks.quality.__main__ import main
from benchmarks.quality.answers import Answers
from benchmarks.quality.data_sets import DATA_SETS, ROOT, LabelledRow, read_parts
from benchmarks.quality.methods import METHODS, Method
from benchmarks.quality.page import PAGE
from benchmarks.quality.peer_data import PeerData, read_peer_data
from benchmarks.quality.product import ProductError, read_predictions
from benchmarks.quality.runs import Task, prepare, run
from polyhead.schema import Head, HeadKind

MEASURED = ROOT / "benchmarks" / "quality" / "measured.py"


@pytest.fixture
def task_of(public: Path, tmp_path: Path) -> Callable[..., Task]:
    """Makes the task of a made-up data set."""

    def make(name: str, most_rows: int | None = None) -> Task:
        parts = read_parts(DATA_SETS[name], public, most_rows)
        task = Task(DATA_SETS[name], parts, public, tmp_path / "rows", tmp_path / "work", 600.0, rehearse=True)
        prepare(task)
        return task

    return make


def measure(tmp_path: Path, code: str, limit_s: float = 60.0) -> dict[str, Any]:
    out, log = tmp_path / "out.json", tmp_path / "log.txt"
    command = [sys.executable, str(MEASURED), str(out), str(limit_s), str(log), sys.executable, "-c", code]
    subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_memory_is_that_of_the_command(tmp_path: Path) -> None:
    """A command that fills 200 MB is measured with these; one that does nothing is not measured with its parent's."""
    held = bytearray(b"x") * 300_000_000
    assert measure(tmp_path, "pass")["memory_mb"] < 100
    assert 200 <= measure(tmp_path, "held = b'x' * (200 << 20)")["memory_mb"] < 300
    assert len(held) == 300_000_000


def test_a_command_is_ended_at_the_limit(tmp_path: Path) -> None:
    """It sleeps for an hour, with a limit of half a second; a failed command has its exit code."""
    found = measure(tmp_path, "import time; time.sleep(3600)", limit_s=0.5)
    assert (found["is_over"], found["code"]) == (True, -9)
    assert found["seconds"] >= 0.5
    found = measure(tmp_path, "raise SystemExit(3)")
    assert (found["is_over"], found["code"]) == (False, 3)


def test_a_finished_run_is_not_run_again(task_of: Callable[..., Task]) -> None:
    """Its result is read again until its rows change; a run that failed is tried again."""
    task, majority = task_of("banking77"), METHODS["majority"]
    first = run(task, majority, 1)
    assert first["failed"] is None
    target = task.folder(majority, 1) / "result.json"
    marked = first | {"seconds": -1}
    target.write_text(json.dumps(marked), encoding="utf-8")
    assert run(task, majority, 1) == marked
    target.write_text(json.dumps(marked | {"failed": "no memory"}), encoding="utf-8")
    assert run(task, majority, 1)["seconds"] > 0
    target.write_text(json.dumps(marked), encoding="utf-8")
    assert run(task_of("banking77", most_rows=10), majority, 1)["seconds"] > 0


def test_a_failed_run_says_why(task_of: Callable[..., Task]) -> None:
    """The last line of a peer that does not exist is its reason."""
    found = run(task_of("banking77"), Method("nobody", "Nobody"), 1)
    assert "ended with exit code 2: " in found["failed"]
    assert "invalid choice: 'nobody'" in found["failed"]


def right(data: PeerData, task: Task, answers: Answers) -> dict[str, float]:
    """By head: the share of test rows whose answer is right, or the mean error."""
    found = {}
    for head in data.heads:
        answer, labels = answers.heads[head.name], [row.labels[head.name] for row in task.parts["test"]]
        if head.kind == HeadKind.REGRESSION:
            found[head.name] = float(np.abs(answer.scores[:, 0] - np.array(labels, float)).mean())
            continue
        given = [[name for name, is_chosen in zip(head.labels, row, strict=True) if is_chosen] for row in answer.chosen]
        true = [sorted(label) if isinstance(label, list) else [label] for label in labels]
        found[head.name] = float(np.mean([a == b for a, b in zip(given, true, strict=True)]))
    return found


@pytest.mark.parametrize("peer", ["logistic", "sgd"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_linear_peers_find_words_that_give_labels_away(task_of: Callable[..., Task], name: str, peer: str) -> None:
    """All labels of all heads are right, and a rating of 1 or 5 is nearly so."""
    task = task_of(name)
    data = read_peer_data(task.data)
    answers = linear.answer(data, peer, seed=1)
    found = right(data, task, answers)
    if name == "reviews":
        assert found.pop("rating") < 1
    assert found == dict.fromkeys(found, 1.0)
    if name == "clinc150":
        assert answers.inside is not None
        assert answers.outside is not None
        assert answers.inside.mean() > answers.outside.mean()


def test_the_majority_answer_is_the_same_for_all(task_of: Callable[..., Task]) -> None:
    """The most frequent label, or the median of 1 and 5."""
    task = task_of("reviews")
    data = read_peer_data(task.data)
    answers = linear.answer(data, "majority", seed=1)
    ratings = sorted(row.labels["rating"] for row in task.parts["train"])
    for head in data.heads:
        answer = answers.heads[head.name]
        assert len(np.unique(answer.chosen, axis=0)) == 1
    assert np.unique(answers.heads["rating"].scores).tolist() == [np.median(ratings)]
    labels = [row.labels["department"] for row in task.parts["train"]]
    department = data.heads[0].labels[int(answers.heads["department"].chosen[0].argmax())]
    assert labels.count(department) == max(labels.count(label) for label in ("Bottoms", "Dresses"))


def write_predictions(path: Path, topics: list[str | None]) -> None:
    """Rows 3, 1 and 2 of a test file, and a validation row; the model's labels are in another order, and more."""
    scores = pyarrow.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], None, [1, 0, 0]], pyarrow.list_(pyarrow.float32()))
    tags = pyarrow.array([[0.9], [0.2], None, [0.0]], pyarrow.list_(pyarrow.float32()))
    columns = {
        "row": [3, 1, 2, 1], "split": ["test", "test", "test", "validation"],
        "topic_label": ["a", "c", None, "c"], "topic_true": [*topics, "a"], "topic_scores": scores,
        "topic_score": pyarrow.array([0.7, 0.6, None, 1.0], pyarrow.float32()),
        "tags_labels": [["x"], [], None, []], "tags_true": [["x"], [], ["x"], []], "tags_scores": tags,
        "stars_value": [2.5, 1.0, None, 0.0], "stars_true": [2.0, 1.0, 4.0, 0.0],
    }  # fmt: skip
    table = pyarrow.table(columns)
    for name, labels in (("topic_scores", ["c", "b", "a"]), ("tags_scores", ["x"])):
        place = table.schema.get_field_index(name)
        field = table.schema.field(place).with_metadata({"labels": json.dumps(labels)})
        table = table.set_column(place, field, table[name])
    pyarrow.parquet.write_table(table, path)


def test_the_product_is_scored_by_what_it_serves(tmp_path: Path) -> None:
    """Rows are joined by their number, labels by their name; a row without an answer has none; other labels stop."""
    heads = [
        Head(name="topic", kind=HeadKind.SINGLE_LABEL, labels=("a", "b", "d")),
        Head(name="tags", kind=HeadKind.MULTI_LABEL, labels=("x", "y")),
        Head(name="stars", kind=HeadKind.REGRESSION),
    ]
    rows = [
        LabelledRow("first", {"topic": "b", "tags": [], "stars": 1.0}, None),
        LabelledRow("second", {"topic": None, "tags": ["x"], "stars": 4.0}, None),
        LabelledRow("third", {"topic": "a", "tags": ["x"], "stars": 2.0}, None),
    ]
    path = tmp_path / "predictions.parquet"
    write_predictions(path, ["a", "b", None])
    found = read_predictions(path, heads, rows).heads
    assert found["topic"].chosen.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(found["topic"].scores, [[0.1, 0.3, 0], [0, 0, 0], [0.7, 0.2, 0]])
    assert found["tags"].chosen.tolist() == [[0, 0], [0, 0], [1, 0]]
    assert found["stars"].scores.tolist() == [[1.0], [0.0], [2.5]]
    write_predictions(path, ["a", "a", None])
    with pytest.raises(
        ProductError, match="head 'topic', test row 1: the product read the label 'a', the benchmark 'b'"
    ):
        read_predictions(path, heads, rows)


@pytest.mark.parametrize("name", ["clinc150", "goemotions"])
@pytest.mark.parametrize("peer", ["fasttext", "spacy"])
def test_other_peers_find_words_that_give_labels_away(task_of: Callable[..., Task], name: str, peer: str) -> None:
    """They answer every head that has labels, most rows right; they are installed in .venv-peers only."""
    pytest.importorskip(peer)
    task = task_of(name)
    data = read_peer_data(task.data)
    if peer == "fasttext":
        from benchmarks.quality.fasttext_peer import answer

        answers = answer(data, 1)
    else:
        from benchmarks.quality.spacy_peer import answer as answer_in_time

        answers = answer_in_time(data, 1, 600.0)
    assert min(right(data, task, answers).values()) > 0.6


def test_a_part_leaves_the_committed_result(public: Path, tmp_path: Path) -> None:
    """One data set and one method: the result is in the working folder, the committed page does not change."""
    before = PAGE.read_bytes()
    work = tmp_path / "work"
    main(["--data", str(public), "--work", str(work), "--sets", "banking77", "--peers", "majority"])
    result = json.loads((work / "quality.json").read_text(encoding="utf-8"))
    assert result["missing"].keys() == METHODS.keys() - {"majority"}
    assert result["sets"]["banking77"]["heads"]["intent"]["methods"].keys() == {"majority"}
    assert (result["heads"], result["heads_won"], result["worst_margin"]) == (1, 0, None)
    assert PAGE.read_bytes() == before


def test_every_data_set_is_rehearsed(public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All twelve heads have the product's scores and a linear peer's; the last line counts them; nothing runs twice."""
    out = tmp_path / "result.json"
    options = ["--data", str(public), "--debian", str(public), "--work", str(tmp_path / "work"), "--out", str(out),
               "--seeds", "1", "--rehearse", "--peers", "polyhead", "sgd"]  # fmt: skip
    main(options)
    said = capsys.readouterr().out
    summary = json.loads(said.splitlines()[-1])
    assert summary.keys() == {"heads", "heads_won", "worst_margin", "hours"}
    assert summary["heads"] == 12
    assert said.count("runs ...") == 10
    result = json.loads(out.read_text(encoding="utf-8"))
    for data_set in result["sets"].values():
        assert all(one["failed"] is None for runs in data_set["runs"].values() for one in runs), data_set["runs"]
        assert all(one["seconds"] > 0 and one["memory_mb"] > 50 for runs in data_set["runs"].values() for one in runs)
        for head in data_set["heads"].values():
            assert head["methods"].keys() == {"polyhead", "sgd"}
            assert head["against"]["peer"] == "sgd"
    assert result["sets"]["clinc150"]["outside"].keys() == {"polyhead", "sgd"}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    main(options)
    again = capsys.readouterr().out
    assert "runs ..." not in again
    assert json.loads(again.splitlines()[-1]) == summary
