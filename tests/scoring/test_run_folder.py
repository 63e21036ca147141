"""The output folder: what goes on, what is refused, and what a kill at any point leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from polyhead_scoring.errors import OutputError
from polyhead_scoring.job import Job
from polyhead_scoring.partition import Partition
from polyhead_scoring.request import Request, prepare
from polyhead_scoring.run_folder import Done, RunFolder
from tests.scoring.texts import plain_rows, write_jsonl
from tests.tiny import SCHEMA, write_tiny_checkpoint


@pytest.fixture
def request_of(base_checkpoint: Path, tmp_path: Path) -> Any:
    """Makes requests over one file, with what a test changes in them."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(4))

    def make(**fields: Any) -> Request:
        return Request(
            **({"checkpoint": base_checkpoint, "data": (str(file),), "output": str(tmp_path / "out")} | fields)
        )

    return make


PARTITIONS = [
    Partition(file="rows.jsonl", first_row=2 * i, rows=2, start=0, size=9, tokens=9, number=i) for i in range(2)
]


def finish_partition(folder: RunFolder, number: int) -> Done:
    """As a scorer does it."""
    name = f"part-{number:06d}"
    (folder.place / f"{name}.parquet").write(b"12345")
    done = Done(
        number=number, rows=2, errors=number, tokens=9, precision="fp32", output=f"{name}.parquet", size=5, sha256="x"
    )
    (folder.done / f"{name}.json").write(done.model_dump_json().encode())
    return done


def begin(request: Request, restart: bool = False) -> tuple[Job, RunFolder, dict[str, Any] | None]:
    """Begins a run and plans it, or goes on with it."""
    job, _, folder = prepare(request)
    manifest = folder.begin(job, restart=restart)
    if manifest is None and not folder.plan.exists():
        folder.write_plan(PARTITIONS, pyarrow.schema([("id", pyarrow.int64())]))
    return job, folder, manifest


def test_a_run_goes_on_from_what_is_whole(request_of: Any) -> None:
    """Only partitions whose note and output are both there count; the manifest comes last, and says all."""
    job, folder, manifest = begin(request_of())
    assert manifest is None
    done = finish_partition(folder, 0)
    finish_partition(folder, 1)
    (folder.place / "part-000001.parquet").write(b"123")
    assert begin(request_of())[2] is None
    assert folder.finished() == {0: done}
    with pytest.raises(OutputError, match=r"part-000001\.parquet: is missing or changed"):
        folder.finish(job, SCHEMA, PARTITIONS, {0: done})
    folder.finish(job, SCHEMA, PARTITIONS, {0: done, 1: finish_partition(folder, 1)})
    manifest = begin(request_of())[2]
    assert manifest is not None
    assert (manifest["rows"], manifest["errors"], manifest["tokens"]) == (4, 1, 18)
    assert [(part["first_row"], part["rows"], part["output"]) for part in manifest["partitions"]] == [
        (0, 2, "part-000000.parquet"),
        (2, 2, "part-000001.parquet"),
    ]
    assert folder.place.names() == ["_manifest.json", "part-000000.parquet", "part-000001.parquet"]


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused(request_of: Any, base_checkpoint: Path, tmp_path: Path, finished: bool) -> None:
    """Another checkpoint, option, list of files or content is named and refused; --restart throws the old run away."""
    job, folder, _ = begin(request_of())
    done = {number: finish_partition(folder, number) for number in range(2)}
    if finished:
        folder.finish(job, SCHEMA, PARTITIONS, done)
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    more = write_jsonl(tmp_path / "more.jsonl", plain_rows(2))
    for fields, named in (
        ({"checkpoint": tmp_path / "other"}, "checkpoint was"),
        ({"top_k": 2}, "top_k was None and is 2"),
        ({"keep": ("id",)}, r"keep was None and is \['id'\]"),
        ({"partition_tokens": 9}, "partition_tokens was 500000 and is 9"),
        ({"data": (str(tmp_path / "rows.jsonl"), str(more))}, "the list of input files was"),
        ({"gpus_per_actor": 1}, "device was 'cpu' and is 'cuda'"),
    ):
        with pytest.raises(OutputError, match=f"cannot go on: {named}.* --restart"):
            begin(request_of(**fields))
    write_jsonl(tmp_path / "rows.jsonl", plain_rows(5))
    with pytest.raises(OutputError, match=r"the size and time of .*rows\.jsonl was"):
        begin(request_of())
    assert "part-000000.parquet" in folder.place.names()
    assert begin(request_of(), restart=True)[2] is None
    assert folder.place.names() == ["_run"]
    assert folder.finished() == {}


def test_foreign_folders_are_left_alone(request_of: Any, tmp_path: Path) -> None:
    """A folder that holds anything else is refused, also with --restart; a folder of another version says so."""
    (tmp_path / "out").mkdir()
    begin(request_of())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "part-000000.parquet").write_bytes(b"precious")
    for restart in (False, True):
        with pytest.raises(OutputError, match="no scoring run"):
            begin(request_of(output=str(foreign)), restart=restart)
    assert (foreign / "part-000000.parquet").read_bytes() == b"precious"
    (tmp_path / "out" / "_run" / "job.json").write_text(json.dumps({"format": 0}), encoding="utf-8")
    with pytest.raises(OutputError, match="another version"):
        begin(request_of())


def test_a_mistake_before_the_plan_can_be_mended(request_of: Any) -> None:
    """As long as nothing is planned, nothing is scored, and other options need no --restart."""
    job, _, folder = prepare(request_of(text_column="texxt"))
    folder.begin(job, restart=False)
    assert begin(request_of())[2] is None
    plan = folder.read_plan()
    assert plan is not None
    assert (plan[0], plan[1].names) == (PARTITIONS, ["id"])


def test_a_restart_that_was_killed_is_gone_on_with(request_of: Any) -> None:
    """Whatever was removed by then, nothing of the old run counts as done."""
    _, folder, _ = begin(request_of())
    finish_partition(folder, 0)
    folder.clearing.write(b"")  # the first thing that clearing does
    assert begin(request_of(top_k=2))[2] is None
    assert folder.place.names() == ["_run"]
    assert folder.run.names() == ["job.json", "plan.json"]


def test_one_run_at_a_time(request_of: Any) -> None:
    """A second run of one output is refused while the first lasts."""
    folder = begin(request_of())[1]
    with folder.lock(), pytest.raises(OutputError, match="another run is writing here"), folder.lock():
        pass
    with folder.lock():
        pass


def test_uris_are_places_too(request_of: Any, tmp_path: Path) -> None:
    """An output by URI is the folder that it names."""
    _, folder, _ = begin(request_of(output=f"file://{tmp_path}/by-uri"))
    finish_partition(folder, 0)
    assert sorted(path.name for path in (tmp_path / "by-uri").iterdir()) == ["_run", "part-000000.parquet"]
