"""Orphans of a killed supervisor are removed; what a living one uses is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from polyhead_serving.orphans import LOCK_PREFIX, backends_folder, remove_orphans, run_lock

HELD = """
import sys, time
from pathlib import Path
from polyhead_serving.orphans import run_lock
with run_lock(Path(sys.argv[1])) as run:
    print(run, flush=True)
    time.sleep(60)
"""


def test_only_orphans_are_removed(tmp_path: Path) -> None:
    """Regions, backends and processes of a killed run are removed; those of a living run and of others stay."""
    holder = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    run = holder.stdout.readline().strip()
    orphan = subprocess.Popen(["bash", "-c", 'exec -a "$0" sleep 60', f"triton_python_backend_stub {run}_region_1"])
    try:
        while Path(f"/proc/{orphan.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)  # while bash becomes sleep, the process has no command line to be found by
        region = tmp_path / f"{run}_region_1"
        region.write_bytes(b"x")
        other = tmp_path / "polyhead_1_abcdef_region_1"
        other.write_bytes(b"x")
        backends_folder(run).mkdir()
        with run_lock(tmp_path) as mine:
            (tmp_path / f"{mine}_region").touch()
            assert remove_orphans(tmp_path) == []
            assert region.exists()
            holder.kill()
            holder.wait()
            assert remove_orphans(tmp_path) == [run]
            assert (tmp_path / f"{mine}_region").exists()
            assert (tmp_path / f"{LOCK_PREFIX}{mine}").exists()
        assert not region.exists()
        assert not backends_folder(run).exists()
        assert other.exists()
        assert orphan.wait(5) == -9
    finally:
        holder.kill()
        orphan.kill()
        holder.stdout.close()
        orphan.wait()
        holder.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, f"{mine}_region"])
