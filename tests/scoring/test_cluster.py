"""Runs on a Ray cluster of several nodes: nothing is lost and nothing there twice, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from ray.cluster_utils import Cluster

from polyhead.predictor import Predictor
from tests.scoring.conftest import NODE
from tests.scoring.texts import BAD_LINES, plain_rows, write_jsonl
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
    command = [Path(sys.executable).parent / "polyhead-score", checkpoint, file, "--output", output, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


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


def partitions_done(output: Path) -> int:
    """How many are noted as done in an unfinished run."""
    return len(list((output / "_run" / "done").glob("part-*.json")))


def check_output(output: Path, checkpoint: Path, reasons: Sequence[str] = ()) -> None:
    """Every row is there once, in order, with the predictor's answer or its reason, and nothing else is."""
    manifest = json.loads((output / "_manifest.json").read_text(encoding="utf-8"))
    assert (manifest["rows"], manifest["errors"]) == (len(ROWS) + len(reasons), len(reasons))
    parts = [pyarrow.parquet.read_table(output / part["output"]) for part in manifest["partitions"]]
    scored = [row for part in parts for row in part.to_pylist()]
    assert [row["id"] for row in scored[: len(ROWS)]] == [row["id"] for row in ROWS]
    answers = Predictor.load(checkpoint).predict([row["text"] for row in ROWS])
    for row, answer in zip(scored, answers, strict=False):
        best = answer["heads"]["topic"]
        assert row["predicted_topic"]["score"] == pytest.approx(best["scores"][0], abs=1e-5)
        assert row["predicted_topic"]["label"] == best["labels"][0] or best["scores"][0] < 0.5
        assert row["predicted_stars"]["value"] == pytest.approx(answer["heads"]["stars"]["value"], abs=1e-4)
    for row, reason in zip(scored[len(ROWS) :], reasons, strict=True):
        assert row["error"].startswith(reason)
    assert {path.name for path in output.iterdir()} == {
        "_manifest.json", *(part["output"] for part in manifest["partitions"]),
    }  # fmt: skip


def test_a_node_dies(cluster: Cluster, deep_checkpoint: Path, tmp_path: Path) -> None:
    """A node that is killed in the middle of its work costs time, and no row."""
    file, out = tmp_path / "rows.parquet", tmp_path / "out"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=300)
    doomed = cluster.add_node(**NODE)
    raylet = psutil.Process(doomed.all_processes["raylet"][0].process.pid)
    options = ["--address", cluster.address, "--actors", "3", "--partition-tokens", "1000"]

    def at_work() -> bool:
        """Its actor, whose title names what it does, was given a partition, and others are done."""
        titles = [" ".join(process.cmdline()) for process in raylet.children(recursive=True)]
        return partitions_done(out) > 2 and any("MapWorker" in title and ".submit" in title for title in titles)

    run = start(deep_checkpoint, file, out, *options)
    wait_for(run, at_work)
    cluster.remove_node(doomed, allow_graceful=False)
    assert not (out / "_manifest.json").exists()
    end(run, 0)
    check_output(out, deep_checkpoint)


def test_the_driver_dies(cluster: Cluster, client_port: int, deep_checkpoint: Path, tmp_path: Path) -> None:
    """After SIGKILL the same command goes on with the rest, also from outside the cluster; bad rows are kept."""
    file, out = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    with file.open("ab") as more:
        more.write(b"\n".join(BAD_LINES))
    options = ["--partition-tokens", "1000", "--actors", "1"]
    killed = start(deep_checkpoint, file, out, *options, "--address", cluster.address)
    wait_for(killed, lambda: partitions_done(out) > 1)
    killed.send_signal(signal.SIGKILL)
    end(killed, -signal.SIGKILL)
    assert not (out / "_manifest.json").exists()
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "_run" / "done").glob("part-*.json")]
    before = {out / note["output"]: (out / note["output"]).stat().st_mtime_ns for note in notes}
    end(start(deep_checkpoint, file, out, *options, "--address", f"ray://127.0.0.1:{client_port}"), 1)
    assert len(before) > 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check_output(out, deep_checkpoint, list(BAD_LINES.values()))
