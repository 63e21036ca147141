"""What this process may use of its machine: cores and memory, with the limits that a container sets.

Limits are read from both versions of cgroups, at the process's own group and at all above it. ``root`` is the file
system's root in every function; tests put another there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNKNOWN = 2**63  # bytes: where the kernel does not say, nothing is known to be too little


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: those it may run on, at most the CPU quota's share, at least 1."""
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

    Pages of files count as free, as the kernel drops them first.
    """
    available = [_statistics(root / "proc/meminfo").get("MemAvailable:", UNKNOWN // 1024) * 1024]
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
    """Lines of a name, a number and perhaps a unit."""
    lines = file.read_text(encoding="ascii").splitlines() if file.is_file() else []
    rows = [line.split() for line in lines]
    return {row[0]: int(row[1]) for row in rows}


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's cgroup and of each above it; "" is version 2's one hierarchy."""
    file = root / "proc/self/cgroup"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
            group = top / path.lstrip("/")
            # A container sees its own group as the top, and may be told the path that it has outside.
            yield from (place for place in (group, *group.parents) if place == top or top in place.parents)
