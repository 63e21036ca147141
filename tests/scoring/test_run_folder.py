"""The run folder: what continues, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file, save_file

from polyhead.checkpoint_files import NGRAMS
from polyhead.identity import checkpoint_id
from polyhead_scoring import ScoringError
from polyhead_scoring.job import Job, Request, describe_file, job_of
from polyhead_scoring.partition import Partition, Start
from polyhead_scoring.run import checkpoint_model
from polyhead_scoring.run_folder import Done, RunFolder, is_one_file
from tests.classifier.test_ngrams_served import write as write_checkpoint_with_ngrams
from tests.scoring.texts import plain_rows, write_jsonl
from tests.tiny import SCHEMA, write_tiny_checkpoint

HEADS = SCHEMA.to_json()
COLUMNS = pyarrow.schema([("id", pyarrow.int64())])
PARTITIONS = [
    Partition(file="rows.jsonl", first_row=2 * i, rows=2, start=Start(2 * i + 1), tokens=9, number=i) for i in range(2)
]


def plan_of(file: str) -> list[Partition]:
    """PARTITIONS of this file."""
    return [one.model_copy(update={"file": file}) for one in PARTITIONS]


@pytest.fixture(params=["out", "out.csv"])
def request_of(base_checkpoint: Path, tmp_path: Path, request: Any) -> Any:
    """Makes requests over one file, with what a test changes in them; to a folder, and to one file."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(4))

    def make(**fields: Any) -> Request:
        known = {"checkpoint": base_checkpoint, "data": (str(file),), "output": str(tmp_path / request.param)}
        return Request(**(known | fields))

    return make


def finish_partition(folder: RunFolder, number: int, failed: bool = False) -> Done:
    """Does what a scorer does."""
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"id": [2 * number, 2 * number + 1]}), sink)
    content = sink.getvalue().to_pybytes()
    done = Done(
        number=number, rows=2, errors=int(failed), tokens=9, precision="fp32", output=f"part-{number:06d}.parquet",
        size=len(content), sha256="x",
    )  # fmt: skip
    folder.write_part(PARTITIONS[number], content, b'{"row": 1}\n' if failed else b"", done)
    return done


def begin(request: Request, restart: bool = False) -> tuple[Job, RunFolder, dict[str, Any] | None]:
    """Begins a run and plans it, or continues it."""
    folder = RunFolder(request.output, one_file=is_one_file(request.output))
    inputs = tuple(describe_file(name) for name in request.data)
    job = job_of(request, inputs, checkpoint_model(request).answers_from, one_file=folder.one_file)
    manifest = folder.begin(job, restart=restart)
    if manifest is None and not folder.plan.exists():
        folder.write_plan(plan_of(request.data[0]), COLUMNS)
    return job, folder, manifest


def test_a_run_continues_from_what_is_complete(request_of: Any, tmp_path: Path) -> None:
    """Only partitions whose note and part are both there count; the manifest comes last, and nothing else is left."""
    job, folder, manifest = begin(request_of())
    assert manifest is None
    done = finish_partition(folder, 0)
    finish_partition(folder, 1)
    (folder.parts / "part-000001.parquet").write(b"123")
    assert begin(request_of())[2] is None
    assert folder.finished() == {0: done}
    with pytest.raises(ScoringError, match="part-000001 is missing or changed"):
        folder.finish(job, HEADS, COLUMNS, PARTITIONS, {0: done})
    folder.finish(job, HEADS, COLUMNS, PARTITIONS, {0: done, 1: finish_partition(folder, 1, failed=True)})
    manifest = begin(request_of())[2]
    assert manifest is not None
    assert (manifest["rows"], manifest["errors"], manifest["tokens"]) == (4, 1, 18)
    assert [(part["first_row"], part["rows"], part["errors"]) for part in manifest["partitions"]] == [
        (0, 2, 0), (2, 2, 1),
    ]  # fmt: skip
    assert folder.errors.read() == b'{"row": 1}\n'
    if folder.one_file:
        assert folder.output.read() == b"id\n0\n1\n2\n3\n"
        assert sorted(path.name for path in tmp_path.glob("*out*")) == [
            "out.csv", "out.csv.errors.jsonl", "out.csv.manifest.json",
        ]  # fmt: skip
    else:
        assert folder.output.names() == [
            "_errors.jsonl", "_manifest.json", "part-000000.parquet", "part-000001.parquet",
        ]  # fmt: skip


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused(request_of: Any, tmp_path: Path, finished: bool) -> None:
    """Another checkpoint, option, list of files or content is named and refused; --restart throws the old run away."""
    job, folder, _ = begin(request_of())
    done = {number: finish_partition(folder, number) for number in range(2)}
    if finished:
        folder.finish(job, HEADS, COLUMNS, PARTITIONS, done)
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    more = write_jsonl(tmp_path / "more.jsonl", plain_rows(2))
    for fields, named in (
        ({"checkpoint": tmp_path / "other"}, "checkpoint was"),
        ({"top_k": 2}, "top_k was None and is 2"),
        ({"keep": ("id",)}, r"keep was None and is \['id'\]"),
        ({"partition_tokens": 9}, "partition_tokens was 50*0000 and is 9"),
        ({"data": (str(tmp_path / "rows.jsonl"), str(more))}, "the list of input files was"),
        ({"device": "cuda"}, "device was 'cpu' and is 'cuda'"),
        ({"precision": "fp32"}, "precision was 'auto' and is 'fp32'"),
    ):
        with pytest.raises(ScoringError, match=f"cannot continue: {named}.* --restart"):
            begin(request_of(**fields))
    write_jsonl(tmp_path / "rows.jsonl", plain_rows(5))
    with pytest.raises(ScoringError, match=r"the content of .*rows\.jsonl was"):
        begin(request_of())
    assert begin(request_of(), restart=True)[2] is None
    assert folder.run.names() == ["job.json", "plan.json"]
    assert folder.finished() == {}


def test_foreign_outputs_are_left_alone(request_of: Any, tmp_path: Path) -> None:
    """A folder that holds anything else is refused, also with --restart; a file is replaced with it only."""
    folder = begin(request_of())[1]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "part-000000.parquet").write_bytes(b"precious")
    for restart in (False, True):
        with pytest.raises(ScoringError, match="not a scoring run"):
            begin(request_of(output=str(foreign)), restart=restart)
    assert (foreign / "part-000000.parquet").read_bytes() == b"precious"
    (tmp_path / "mine.csv").write_bytes(b"precious")
    with pytest.raises(ScoringError, match="exists already"):
        begin(request_of(output=str(tmp_path / "mine.csv")))
    assert begin(request_of(output=str(tmp_path / "mine.csv")), restart=True)[2] is None
    assert (tmp_path / "mine.csv").read_bytes() == b"precious"
    folder.job.write(json.dumps({"format": 0}).encode())
    with pytest.raises(ScoringError, match="another version"):
        begin(request_of())


def test_a_changed_output_is_noticed(request_of: Any) -> None:
    """A file that was edited after it was scored is not called finished."""
    job, folder, _ = begin(request_of())
    done = {number: finish_partition(folder, number) for number in range(2)}
    folder.finish(job, HEADS, COLUMNS, PARTITIONS, done)
    if folder.one_file:
        folder.output.write(b"edited")
        with pytest.raises(ScoringError, match="was changed after it was scored"):
            begin(request_of())


def test_a_mistake_before_the_plan_can_be_corrected(request_of: Any) -> None:
    """As long as there is no plan, nothing is scored, and other options need no --restart."""
    request = request_of(text_column="texxt")
    folder = RunFolder(request.output, one_file=is_one_file(request.output))
    inputs = tuple(describe_file(name) for name in request.data)
    folder.begin(job_of(request, inputs, {}, one_file=folder.one_file), restart=False)
    job, _, manifest = begin(request_of())
    assert manifest is None
    plan = folder.read_plan(job)
    assert plan is not None
    assert (plan[0], plan[1].names) == (plan_of(request.data[0]), ["id"])


def test_a_changed_plan_is_refused(request_of: Any, tmp_path: Path) -> None:
    """Who can write into the run's folder cannot have another file, or another column, copied into the output."""
    request = request_of(keep=("id",))
    job, folder, _ = begin(request)
    secret = write_jsonl(tmp_path / "secret.jsonl", plain_rows(4))
    good = plan_of(request.data[0])
    for partitions, columns in (
        ([good[0], plan_of(str(secret))[1]], COLUMNS),
        (good, COLUMNS.append(pyarrow.field("salary", pyarrow.int64()))),
    ):
        folder.write_plan(partitions, columns)
        with pytest.raises(ScoringError, match=r"plan\.json: is not of a scoring run"):
            folder.read_plan(job)
    for content in (b"[]", b"{}", b'{"kept": "00", "partitions": []}', b"[" * 100_000, b"\xff"):
        folder.plan.write(content)
        with pytest.raises(ScoringError, match=r"plan\.json: is not of a scoring run"):
            folder.read_plan(job)


@pytest.mark.parametrize(
    "changed", [{"output": "../rows.parquet"}, {"number": 1}, {"size": "all"}, {"output": "/etc/passwd"}, {"more": 1}]
)
def test_a_changed_note_is_refused(request_of: Any, changed: dict[str, Any]) -> None:
    """A note of a finished part cannot have another file read in the part's place."""
    folder = begin(request_of())[1]
    done = finish_partition(folder, 0)
    (folder.done / "part-000000.json").write(json.dumps(done.model_dump() | changed).encode())
    with pytest.raises(ScoringError, match=r"part-000000\.json: is not of a scoring run"):
        folder.finished()


def test_other_n_grams_are_another_checkpoint(tmp_path: Path) -> None:
    """A run does not continue with them."""
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint_with_ngrams(checkpoint)
    before = checkpoint_id(checkpoint)
    tensors = load_file(checkpoint / NGRAMS)
    save_file(tensors | {"weights": tensors["weights"] * 2}, checkpoint / NGRAMS)
    changed = checkpoint_id(checkpoint)
    (checkpoint / NGRAMS).unlink()
    assert len({before, changed, checkpoint_id(checkpoint)}) == 3


def test_a_killed_restart_continues(request_of: Any) -> None:
    """Whatever it had removed by then, nothing of the old run counts as done."""
    _, folder, _ = begin(request_of())
    finish_partition(folder, 0)
    folder.clearing.write(b"")  # the first thing that clearing does
    assert begin(request_of(top_k=2))[2] is None
    assert folder.run.names() == ["job.json", "plan.json"]


def test_one_run_at_a_time(request_of: Any) -> None:
    """A second run of one output is refused while the first lasts."""
    folder = begin(request_of())[1]
    with folder.lock(), pytest.raises(ScoringError, match="another run is writing here"), folder.lock():
        pass
    with folder.lock():
        pass


def test_what_is_one_file(tmp_path: Path) -> None:
    """The ending says it; an existing folder stays one, and a mistyped ending makes no folder."""
    (tmp_path / "old.parquet").mkdir()
    assert [is_one_file(str(tmp_path / name)) for name in ("a.csv", "a.jsonl.gz", "b.parquet", "a", "old.parquet")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert not is_one_file("s3://bucket/v1.2")
    assert not is_one_file(f"{tmp_path}/v1.2/")
    for name in ("a.txt", "a.xlsx", "a.csvv"):
        with pytest.raises(ScoringError, match="must end as a table does"):
            is_one_file(name)
    with pytest.raises(ScoringError, match="one file can only be written on this machine"):
        is_one_file("s3://bucket/a.csv")


def test_uris_are_places_too(base_checkpoint: Path, tmp_path: Path) -> None:
    """An output by URI is the folder that it names."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(4))
    request = Request(data=(str(file),), output=f"file://{tmp_path}/by-uri", checkpoint=base_checkpoint)
    finish_partition(begin(request)[1], 0)
    assert sorted(path.name for path in (tmp_path / "by-uri").iterdir()) == ["_run", "part-000000.parquet"]
