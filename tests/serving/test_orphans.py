"""Orphans of a killed supervisor are removed; what a living one uses, and what others have planted, is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyhead_serving import orphans
from polyhead_serving.orphans import (
    LOCK_PREFIX,
    backends_folder,
    remove_orphans,
    remove_regions,
    run_lock,
    shm_argument,
)
from tests.other_user import NOBODY, started_as_nobody

RUN = f"polyhead_1_{'a' * 16}"
HELD = """
import sys, time
from pathlib import Path
from polyhead_serving.orphans import run_lock
with run_lock(Path(sys.argv[1])) as run:
    print(run, flush=True)
    time.sleep(60)
"""
SLEEPS = """
import ctypes, os, sys, time
if os.fork():
    print("started", flush=True)
    time.sleep(60)
os.execv("/usr/bin/tail", [sys.argv[1], "-f", "/dev/null", "--", *sys.argv[2:]])
"""


@contextmanager
def killed_supervisor(folder: Path) -> Iterator[str]:
    """Gives the name of a run whose supervisor was killed."""
    holder = subprocess.Popen([sys.executable, "-c", HELD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    run = holder.stdout.readline().strip()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    try:
        yield run
    finally:
        shutil.rmtree(backends_folder(run), ignore_errors=True)


@contextmanager
def process_named(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with this command line; it sleeps."""
    script = 'exec -a "$0" tail -f /dev/null -- "$@"'
    process = subprocess.Popen(["bash", "-c", script, program, *arguments], stderr=subprocess.DEVNULL)
    try:
        while Path(f"/proc/{process.pid}/comm").read_text() != "tail\n":
            time.sleep(0.01)  # while bash becomes tail, the process has no command line to be found by
        yield process
    finally:
        process.kill()
        process.wait()


def test_only_orphans_are_removed(tmp_path: Path) -> None:
    """Regions, backends and processes of a killed run are removed; those of a living run and of others stay."""
    holder = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    run = holder.stdout.readline().strip()
    with process_named("/x/triton_python_backend_stub", f"{run}_region_1") as orphan:
        try:
            region = tmp_path / f"{run}_region_1"
            region.write_bytes(b"x")
            other = tmp_path / "polyhead_1_abcdef_region_1"
            other.write_bytes(b"x")
            assert backends_folder(run).is_dir()
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
            holder.stdout.close()
            holder.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, f"{mine}_region"])


def test_what_a_run_makes_is_private(tmp_path: Path) -> None:
    """Only its user may read the lock file and the folder of backends, whatever the umask; both end with the run."""
    before = os.umask(0)
    try:
        with run_lock(tmp_path) as run:
            (lock,) = tmp_path.iterdir()
            assert lock.name == LOCK_PREFIX + run
            assert lock.stat().st_mode & 0o777 == 0o600
            assert backends_folder(run).stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert not backends_folder(run).exists()
    assert list(tmp_path.iterdir()) == []


def plant(folder: Path, name: str, content: str = "", mode: int = 0o600) -> Path:
    """A file in a shared folder."""
    place = folder / name
    place.write_text(content, encoding="utf-8")
    place.chmod(mode)
    return place


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (LOCK_PREFIX, ""),
        (f"{LOCK_PREFIX}polyhead_", "polyhead_"),
        (f"{LOCK_PREFIX}polyhead_1", "polyhead_1"),
        (f"{LOCK_PREFIX}{RUN}", ""),
        (f"{LOCK_PREFIX}{RUN}", f"polyhead_1_{'b' * 16}"),
        (f"{LOCK_PREFIX}{RUN}\n", RUN),
        (f"{LOCK_PREFIX}{RUN}b", RUN),
        (f"{LOCK_PREFIX}{RUN}*", f"{RUN}*"),
        (f"{LOCK_PREFIX}polyhead_1_{'A' * 16}", f"polyhead_1_{'A' * 16}"),
    ],
)
def test_a_file_that_no_supervisor_wrote(tmp_path: Path, name: str, content: str) -> None:
    """A lock file with another name, or without its name as its content, makes nothing an orphan."""
    place = plant(tmp_path, name, content)
    region = plant(tmp_path, f"{RUN}_region")
    with process_named("/x/tritonserver", shm_argument(RUN)) as healthy:
        assert remove_orphans(tmp_path) == []
        assert healthy.poll() is None
    assert place.exists()
    assert region.exists()


def test_links_and_pipes(tmp_path: Path) -> None:
    """Symbolic links, hard links to another run's lock file, folders and pipes make nothing an orphan."""
    with killed_supervisor(tmp_path) as run:
        lock = tmp_path / f"{LOCK_PREFIX}{run}"
        names = [f"polyhead_1_{letter * 16}" for letter in "abcd"]
        places = [tmp_path / f"{LOCK_PREFIX}{name}" for name in names]
        places[0].symlink_to(plant(tmp_path, "elsewhere", names[0]))
        places[1].hardlink_to(lock)
        places[2].mkdir()
        os.mkfifo(places[3])
        assert remove_orphans(tmp_path) == [run]
        assert not lock.exists()
        assert all(place.is_symlink() or place.exists() for place in places)
        assert (tmp_path / "elsewhere").exists()


def test_a_linked_region_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link with the name of a region stays, and so does what it names."""
    precious = plant(tmp_path, "precious", "x")
    (tmp_path / f"{RUN}_link").symlink_to(precious)
    region = plant(tmp_path, f"{RUN}_region")
    assert remove_regions(RUN, tmp_path) == 1
    assert precious.exists()
    assert not region.exists()


def test_another_users_files_are_not_ours(tmp_path: Path) -> None:
    """What another user has planted, even with the right name and content, is left alone."""
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    lock = plant(tmp_path, f"{LOCK_PREFIX}{RUN}", RUN)
    region = plant(tmp_path, f"{RUN}_region")
    for place in (lock, region):
        os.chown(place, NOBODY, NOBODY)
    with process_named("/x/tritonserver", shm_argument(RUN)) as healthy:
        assert remove_orphans(tmp_path) == []
        assert healthy.poll() is None
    assert remove_regions(RUN, tmp_path) == 0
    assert region.exists()


@pytest.mark.parametrize(
    "command",
    [
        ("/x/tritonserver", "--backend-config=python,shm-region-prefix-name={run}x"),
        ("/x/tritonserver", "--model-repository=/{run}"),
        ("/usr/bin/vim", "tritonserver", shm_argument("{run}")),
        ("/x/not-tritonserver", shm_argument("{run}")),
        ("/x/triton_python_backend_stub", "x{run}_region"),
        ("/usr/bin/less", "triton_python_backend_stub", "{run}_region"),
    ],
)
def test_a_process_that_only_looks_like_an_orphan(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A process is killed only if its program is Triton's and one whole argument is the run's."""
    with killed_supervisor(tmp_path) as run:
        program, *arguments = (word.replace("{run}", run) for word in command)
        with process_named(program, *arguments) as process:
            assert remove_orphans(tmp_path) == [run]
            assert process.poll() is None


def test_the_orphaned_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tritonserver whose supervisor was killed, and which does not end by itself, is killed."""
    monkeypatch.setattr(orphans, "ORPHAN_DRAIN_S", 0.2)
    with killed_supervisor(tmp_path) as run, process_named("/x/tritonserver", shm_argument(run)) as server:
        assert remove_orphans(tmp_path) == [run]
        assert server.wait(5) == -9


def test_another_users_process_is_never_killed(tmp_path: Path) -> None:
    """Not even if it has exactly the command line of an orphan."""
    with (
        killed_supervisor(tmp_path) as run,
        started_as_nobody(SLEEPS, "/x/triton_python_backend_stub", f"{run}_region") as process,
    ):
        time.sleep(0.2)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert f"{run}_region".encode() in Path(f"/proc/{child}/cmdline").read_bytes()
        assert remove_orphans(tmp_path) == [run]
        assert Path(f"/proc/{child}/cmdline").read_bytes()
        os.kill(int(child), 9)


@pytest.mark.parametrize("taken", ["hidden", "lock", "backends"])
def test_a_name_that_is_taken(
    tmp_path: Path, taken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If another user was faster with the name of one of its files, the run takes another name and says whose it is."""
    numbers = iter(["c" * 16, "d" * 16])
    monkeypatch.setattr(orphans.secrets, "token_hex", lambda size: next(numbers))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = f"polyhead_{os.getpid()}_{'c' * 16}"
    names = {"hidden": f".{first}", "lock": f"{LOCK_PREFIX}{first}", "backends": f"{first}_backends"}
    planted = plant(tmp_path, names[taken])
    with run_lock(tmp_path) as run:
        assert run.endswith("d" * 16)
    assert "belongs to" in caplog.text
    assert str(planted) in caplog.text
    assert list(tmp_path.iterdir()) == [planted]
