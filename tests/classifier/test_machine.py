"""What the process may use, read from the files of Linux and of containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyhead.machine import available_memory_bytes, usable_cores

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 cores with 4 GiB of free memory."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    write(tmp_path, "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:  {4 * GIB // 1024} kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    """Creates one file of the machine."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="ascii")


def test_without_limits(machine: Path) -> None:
    """Without limits: the cores of the CPU affinity, and the memory that the kernel reports as available."""
    assert usable_cores(machine) == 8
    assert available_memory_bytes(machine) == 4 * GIB


def test_this_machine() -> None:
    """This machine has at least one core and one MiB, whatever its limits."""
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    assert available_memory_bytes() > 2**20


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)])
def test_quota_of_version_2(machine: Path, quota: str, cores: int) -> None:
    """cpu.max of every group above the process counts, rounded down, but at least 1."""
    write(machine, "proc/self/cgroup", "0::/pod/container\n")
    write(machine, "sys/fs/cgroup/pod/cpu.max", quota + "\n")
    write(machine, "sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
    assert usable_cores(machine) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3)])
def test_quota_of_version_1(machine: Path, quota: str, cores: int) -> None:
    """A container sees its own group as the top, whatever path the group has outside."""
    write(machine, "proc/self/cgroup", "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/\n")
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota + "\n")
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores(machine) == cores


def test_memory_limits(machine: Path) -> None:
    """The limit minus the used memory, without cached files, in both versions; "max" is no limit."""
    write(machine, "proc/self/cgroup", "4:memory:/\n0::/pod\n")
    write(machine, "sys/fs/cgroup/memory.max", "max\n")
    write(machine, "sys/fs/cgroup/memory.current", "1\n")
    write(machine, "sys/fs/cgroup/pod/memory.max", f"{3 * GIB}\n")
    write(machine, "sys/fs/cgroup/pod/memory.current", f"{2 * GIB}\n")
    write(machine, "sys/fs/cgroup/pod/memory.stat", f"anon {GIB}\nactive_file {GIB // 2}\ninactive_file {GIB // 4}\n")
    assert available_memory_bytes(machine) == GIB + GIB // 2 + GIB // 4
    write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
    write(machine, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{2 * GIB}\n")
    write(machine, "sys/fs/cgroup/memory/memory.stat", "total_active_file 0\ntotal_inactive_file 0\n")
    assert available_memory_bytes(machine) == 0
