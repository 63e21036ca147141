"""Disks that are full, in file systems that only one server has."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from loadtest.local_server import ROOT
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus, make_texts
from tests.chaos.harm import failed_requests, serve, survive, wait_until_healed
from tests.chaos.load import VerifiedLoad, through_client
from tests.chaos.namespace import fill, seen_by, with_tmpfs
from tests.e2e.processes import model_processes

pytestmark = pytest.mark.chaos

SHARED_MEMORY = Path("/dev/shm")
FULL_S = 15.0


def test_full_shared_memory(sound: Path, checkpoint: Path, corpus: Corpus, record: Record) -> None:
    """A replica with a full /dev/shm costs no request; once there is space, it answers again, restarted or not."""
    # Long texts make the regions grow, which needs the space.
    long = Corpus.of(checkpoint, [text + " word" * 4000 for text in make_texts(40, longest=8, seed=1)])
    wrapper = with_tmpfs(SHARED_MEMORY, "16m")
    with serve(sound, wrapper=wrapper) as harmed, serve(sound) as healthy:
        with (
            through_client(harmed.url("http"), healthy.url("http")) as client,
            VerifiedLoad(client.scores, corpus, threads=4) as load,
        ):
            load.wait_for(100)
            filler = fill(seen_by(harmed.process.pid, SHARED_MEMORY))
            with VerifiedLoad(client.scores, long, threads=2, most_texts=40) as heavy:
                time.sleep(FULL_S)
                restarts, failed = harmed.times_ready() - 1, failed_requests(harmed)
                filler.unlink()
                began = time.monotonic()
                wait_until_healed(harmed, long, victims=())
                recovery_s = time.monotonic() - began
                load.wait_for(100)
                heavy.wait_for(20)
        assert failed + restarts > 0, "a full /dev/shm harmed nothing: it was not full"
        record(
            "/dev/shm full for 15 s", load.count + heavy.count, recovery_s,
            recovery="from when there was room again", restarts=restarts, failed_at_the_full_replica=failed,
        )  # fmt: skip


def export(checkpoint: Path, repository: Path, pid: int, *options: str) -> subprocess.CompletedProcess[str]:
    """polyhead-export, in the mount namespace of a process."""
    inside = ["nsenter", "--mount", "--wd=/", f"--target={pid}"]
    inside += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    command = [*inside, str(ROOT / ".venv" / "bin" / "polyhead-export"), str(checkpoint)]
    command += ["--repository", str(repository), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_disk_full_export(sound: Path, checkpoint: Path, tmp_path: Path, corpus: Corpus, record: Record) -> None:
    """An export that fills the disk leaves nothing behind; the old version serves on, also after a restart."""
    repository = tmp_path / "repository"
    repository.mkdir()
    used = sum(file.stat().st_size for file in sound.rglob("*") if file.is_file())
    wrapper = with_tmpfs(repository, f"{used // 1024 + 200}k", filled_from=sound)
    with serve(repository, wrapper=wrapper) as harmed, serve(sound) as healthy:
        pid = harmed.process.pid
        model = seen_by(pid, repository) / "gpt2_classifier"
        before = sorted(path.relative_to(model) for path in model.rglob("*") if "__pycache__" not in path.parts)

        def fail_to_export_and_restart() -> None:
            for options in (["--version", "2"], ["--version", "1", "--replace"]):
                done = export(checkpoint, repository, pid, *options)
                assert done.returncode == 2, done
                assert "No space left on device" in done.stderr
                assert "Traceback" not in done.stderr
            os.kill(model_processes(harmed)[0], signal.SIGKILL)

        load, _ = survive(harmed, healthy, corpus, fail_to_export_and_restart)
        after = sorted(path.relative_to(model) for path in model.rglob("*") if "__pycache__" not in path.parts)
        assert after == before
        record("export with the disk full", load.count)
