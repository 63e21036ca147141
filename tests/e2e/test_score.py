"""polyhead-score against a real server that is killed and started again under it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from tests.e2e.processes import ONE_THREAD
from tests.scoring.texts import plain_rows, read_rows, write_jsonl
from tests.tiny import write_tiny_checkpoint


def test_a_killed_server(tmp_path: Path) -> None:
    """The run waits for the server, continues, and ends with every row answered once, in order."""
    write_tiny_checkpoint(tmp_path / "checkpoint", n_layer=8)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository")
    file, out = write_jsonl(tmp_path / "in.jsonl", plain_rows(6000)), tmp_path / "out.csv"
    done = tmp_path / "out.csv.partial" / "done"
    with LocalServer(tmp_path / "repository", environment=ONE_THREAD) as server:
        run = subprocess.Popen(
            [sys.executable, "-m", "polyhead_scoring.command", file, "--output", out, "--server", server.url("http"),
             "--partition-tokens", "2000"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        while not done.exists() or len(list(done.iterdir())) < 3:
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.02)
        supervisor = psutil.Process(server.process.pid)
        for process in [*supervisor.children(recursive=True), supervisor]:
            process.kill()
        server.process.wait()
    assert run.poll() is None, run.communicate()[0]
    with LocalServer(tmp_path / "repository", environment=ONE_THREAD, ports=server.ports):
        said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert "waiting up to 600 s for" in said
    assert "answers again after" in said
    assert [int(row["id"]) for row in read_rows(out)] == list(range(6000))
    assert all(row["topic_label"] for row in read_rows(out))
