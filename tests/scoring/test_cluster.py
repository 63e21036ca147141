"""Runs on a Ray cluster of several nodes: nothing is lost and nothing there twice, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError

from polyhead.predictor import Predictor
from polyhead_rows.errors import TableError
from polyhead_scoring import ScoringError
from polyhead_scoring.cluster import TRIES, RayScorer, default_cpus, fitting_actors, naming_errors
from polyhead_scoring.partition import Partition
from tests.scoring.conftest import NODE
from tests.scoring.test_scorer import scorer_of
from tests.scoring.texts import BAD_LINES, plain_rows, read_rows, write_jsonl
from tests.tiny import write_tiny_checkpoint

ROWS = plain_rows(2000)


@pytest.fixture(scope="module")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model so slow, for its size, that a run lasts long enough to be disturbed."""
    path = tmp_path_factory.mktemp("deep") / "checkpoint"
    write_tiny_checkpoint(path, n_layer=24)
    return path


def start(checkpoint: Path, file: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    """``polyhead-score`` in a process of its own."""
    command = [sys.executable, "-m", "polyhead_scoring.command", file, "--output", output, "--checkpoint", checkpoint]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def end(run: subprocess.Popen[str], exit_code: int) -> str:
    """What a run printed; it must end as it should."""
    output, _ = run.communicate(timeout=240)
    assert run.returncode == exit_code, output
    return output


def wait_for(run: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    """Until something holds while the run lasts."""
    while not what():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.01)


def partitions_done(run_folder: Path) -> int:
    """How many are noted as done in an unfinished run."""
    return len(list((run_folder / "done").glob("part-*.json")))


def check_rows(scored: list[dict[str, Any]], checkpoint: Path, reasons: Sequence[str] = ()) -> None:
    """Every row is there once, in order, with the predictor's answer or its reason."""
    assert len(scored) == len(ROWS) + len(reasons)
    assert [int(row["id"]) for row in scored[: len(ROWS)]] == [row["id"] for row in ROWS]
    answers = Predictor.load(checkpoint).predict([row["text"] for row in ROWS])
    for row, answer in zip(scored, answers, strict=False):
        best = answer["heads"]["topic"]
        assert float(row["topic_score"]) == pytest.approx(best["scores"][0], abs=1e-5)
        assert row["topic_label"] == best["labels"][0] or best["scores"][0] < 0.5
        assert float(row["stars_value"]) == pytest.approx(answer["heads"]["stars"]["value"], abs=1e-4)
    for row, reason in zip(scored[len(ROWS) :], reasons, strict=True):
        assert reason in row["error"]


@pytest.mark.chaos
def test_a_node_dies(cluster: Cluster, deep_checkpoint: Path, tmp_path: Path) -> None:
    """A node that is killed in the middle of its work costs time, and no row; the output is a folder of parts."""
    file, out = tmp_path / "rows.parquet", tmp_path / "out"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=300)
    doomed = cluster.add_node(**NODE)
    raylet = psutil.Process(doomed.all_processes["raylet"][0].process.pid)
    options = ["--address", cluster.address, "--actors", "3", "--partition-tokens", "1000"]

    def at_work() -> bool:
        """Its actor, whose title names what it does, was given a partition, and others are done."""
        titles = [" ".join(process.cmdline()) for process in raylet.children(recursive=True)]
        return partitions_done(out / "_run") > 2 and any(
            "MapWorker" in title and ".submit" in title for title in titles
        )

    run = start(deep_checkpoint, file, out, *options)
    wait_for(run, at_work)
    cluster.remove_node(doomed, allow_graceful=False)
    assert not (out / "_manifest.json").exists()
    end(run, 0)
    manifest = json.loads((out / "_manifest.json").read_text(encoding="utf-8"))
    assert (manifest["rows"], manifest["errors"]) == (len(ROWS), 0)
    names = [part["output"] for part in manifest["partitions"]]
    check_rows([row for name in names for row in read_rows(out / name)], deep_checkpoint)
    assert {path.name for path in out.iterdir()} == {"_manifest.json", *names}


@pytest.mark.chaos
def test_the_driver_dies(cluster: Cluster, client_port: int, deep_checkpoint: Path, tmp_path: Path) -> None:
    """After SIGKILL the same command continues, also from outside the cluster; bad rows are kept; one file appears."""
    file, out = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.csv"
    with file.open("ab") as more:
        more.write(b"\n".join(BAD_LINES))
    run_folder = tmp_path / "out.csv.partial"
    options = ["--partition-tokens", "1000", "--actors", "1"]
    killed = start(deep_checkpoint, file, out, *options, "--address", cluster.address)
    wait_for(killed, lambda: partitions_done(run_folder) > 1)
    killed.send_signal(signal.SIGKILL)
    end(killed, -signal.SIGKILL)
    assert not out.exists()
    before = len(list((run_folder / "done").glob("part-*.json")))
    said = end(start(deep_checkpoint, file, out, *options, "--address", f"ray://127.0.0.1:{client_port}"), 1)
    continued = re.search(r"continuing: (\d+) of (\d+) partitions are done", said)
    assert continued is not None, said
    assert before <= int(continued[1]) < int(continued[2])
    check_rows(read_rows(out), deep_checkpoint, list(BAD_LINES.values()))
    aside = read_rows(tmp_path / "out.csv.errors.jsonl")
    assert [one["row"] for one in aside] == list(range(len(ROWS) + 1, len(ROWS) + len(BAD_LINES) + 1))
    assert not run_folder.exists()


def test_a_task_that_always_dies(deep_checkpoint: Path, tmp_path: Path) -> None:
    """A partition over which process after process dies ends the run, and says what to do."""
    scorer, (partition,) = ray_scorer(deep_checkpoint, write_jsonl(tmp_path / "rows.jsonl", ROWS[:3]), tmp_path / "out")
    for _ in range(TRIES):
        scorer.score(partition)
    with pytest.raises(ScoringError, match="5 processes died over the 3 rows from row 1 on"):
        scorer.score(partition)


def test_another_checkpoint_on_a_node(base_checkpoint: Path, deep_checkpoint: Path, tmp_path: Path) -> None:
    """Each node's checkpoint is compared with the one that the run was started with."""
    file = write_jsonl(tmp_path / "rows.jsonl", ROWS[:3])
    with pytest.raises(ScoringError, match="is another checkpoint on this node"):
        ray_scorer(deep_checkpoint, file, tmp_path / "out", on_node=base_checkpoint)


def ray_scorer(
    checkpoint: Path, file: Path, output: Path, on_node: Path | None = None
) -> tuple[RayScorer, list[Partition]]:
    """What an actor holds, in this process."""
    scorer, partitions = scorer_of(checkpoint, file, output)
    kept = pyarrow.Table.from_pylist(ROWS[:3]).schema
    made = RayScorer(scorer.job, on_node or checkpoint, scorer.heads, kept, str(output), one_file=False, threads=1)
    return made, partitions


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus"),
    [
        ([{"CPU": 64.0}], 0, 1),
        ([{"CPU": 64.0, "GPU": 4.0}], 1, 8),  # 16 are there, and 8 are enough
        ([{"CPU": 26.0, "GPU": 4.0}], 1, 6),
        ([{"CPU": 26.0, "GPU": 4.0}], 0.5, 3),  # 8 actors
        ([{"CPU": 32.0, "GPU": 1.0}], 0.5, 4),  # 8 per GPU
        ([{"CPU": 26.0, "GPU": 4.0}], 2, 13),
        ([{"CPU": 64.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 96.0}], 1, 4),  # must fit on each GPU node
        ([{"CPU": 2.0, "GPU": 4.0}], 1, 1),
        ([{"CPU": 64.0}], 1, 1),  # `fitting_actors` then says that no actor fits
    ],
)
def test_an_actor_with_a_gpu_gets_the_cores_beside_it(nodes: list[dict[str, float]], gpus: float, cpus: float) -> None:
    """Its share of the CPUs of each node that has such a GPU; a dead node does not count."""
    described = [{"Alive": True, "Resources": has} for has in nodes]
    assert default_cpus([*described, {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 8.0}}], gpus) == cpus


def test_how_many_actors_fit() -> None:
    """As many as the scarcest resource allows; none is an error with the numbers."""
    assert fitting_actors({"CPU": 16.0, "memory": 1e9}, 2, 0) == 8
    assert fitting_actors({"CPU": 64.0, "GPU": 4.0}, 6, 0.5) == 8
    with pytest.raises(ScoringError, match="one needs 1 CPUs and 1 GPUs, the whole cluster has 8 and 0"):
        fitting_actors({"CPU": 8.0}, 1, 1)


def test_errors_of_tasks_are_named() -> None:
    """Our own comes through as it was; any other error of a task is one line; a bug of the driver stays one."""

    def raised_in_a_task(error: Exception) -> Exception:
        return RayTaskError("score", "traceback", error).as_instanceof_cause()

    with pytest.raises(TableError, match=r"^rows\.csv: broken$"), naming_errors():
        raise raised_in_a_task(TableError("rows.csv: broken"))
    with pytest.raises(ScoringError, match=r"a task was lost for good .*No space left"), naming_errors():
        raise raised_in_a_task(OSError("No space left on device"))
    with pytest.raises(ZeroDivisionError), naming_errors():
        raise ZeroDivisionError
