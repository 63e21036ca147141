"""What this process may use of its machine: cores and memory within a container's limits.

Reads both versions of cgroups, in the process's own group and in all groups above it. `root` is the root of the file
system; tests pass another one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNKNOWN_BYTES = 2**63  # if the kernel does not say, no amount is known to be too much


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: its CPU affinity, at most the container's CPU quota, at least 1."""
    shares = [float(len(os.sched_getaffinity(0)))]
    for group in _groups(root, ""):
        if (file := group / "cpu.max").is_file():
            quota, period = file.read_text(encoding="ascii").split()
            shares.append(math.inf if quota == "max" else int(quota) / int(period))
    for group in _groups(root, "cpu"):
        if (group / "cpu.cfs_quota_us").is_file():
            quota_us = _number(group / "cpu.cfs_quota_us")
            shares.append(math.inf if quota_us < 0 else quota_us / _number(group / "cpu.cfs_period_us"))
    return max(1, math.floor(min(shares)))


def available_memory_bytes(root: Path = ROOT) -> int:
    """Bytes that this process may still allocate before the kernel swaps or kills: the least of machine and limits.

    Cached pages of files count as free, because the kernel drops them first.
    """
    available = [_statistics(root / "proc/meminfo").get("MemAvailable:", UNKNOWN_BYTES // 1024) * 1024]
    for controller, limit, usage, prefix in (
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        for group in _groups(root, controller):
            if (group / limit).is_file() and (group / limit).read_text(encoding="ascii").strip() != "max":
                statistics = _statistics(group / "memory.stat")
                files = sum(statistics.get(f"{prefix}{state}_file", 0) for state in ("active", "inactive"))
                available.append(_number(group / limit) - _number(group / usage) + files)
    return max(0, min(available))


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _statistics(file: Path) -> dict[str, int]:
    """Reads lines of a name, a number and, optionally, a unit."""
    lines = file.read_text(encoding="ascii").splitlines() if file.is_file() else []
    rows = [line.split() for line in lines]
    return {row[0]: int(row[1]) for row in rows}


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's cgroup and of each group above it; "" is the single hierarchy of version 2."""
    file = root / "proc/self/cgroup"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
            group = top / path.lstrip("/")
            # A container sees its own group as the top, but may be told the path that the group has outside.
            yield from (place for place in (group, *group.parents) if place == top or top in place.parents)
