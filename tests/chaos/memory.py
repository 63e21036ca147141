"""Memory of processes over time, and whether it stays flat."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import theilslopes

WARM_UP = 0.25  # share of the time in which caches and pools fill
# How much a process may grow in the rest of the time; more is a leak.
MOST_GROWTH_MIB = 8.0
MOST_GROWTH = 0.05  # of its median


@dataclass(frozen=True)
class Flatness:
    """One process's memory; growth is the median slope over all pairs of samples, times the time."""

    median_mib: float
    growth_mib: float
    allowed_mib: float

    @property
    def is_flat(self) -> bool:
        """Whether it grew by no more than is allowed; it may shrink."""
        return self.growth_mib <= self.allowed_mib


def flatness(minutes: list[float], mib: list[float]) -> Flatness:
    """Judges the samples after the warm-up; a few outliers do not change the slope."""
    times, values = np.array(minutes), np.array(mib)
    rest = times >= times[0] + WARM_UP * (times[-1] - times[0])
    slope = theilslopes(values[rest], times[rest]).slope
    median = float(np.median(values[rest]))
    growth = float(slope * (times[-1] - times[rest][0]))
    return Flatness(round(median, 1), round(growth, 2), round(max(MOST_GROWTH_MIB, MOST_GROWTH * median), 1))


def resident_mib(pid: int) -> float:
    """The memory that a process uses, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class MemoryLog:
    """Samples processes until the block ends.

    Args:
        processes: process ids by name; a process that ends is an error, because its successor would start from nothing.
        interval_s: time between samples.

    Attributes:
        minutes: when the samples were taken.
        mib: memory by process.
    """

    def __init__(self, processes: Mapping[str, int], interval_s: float) -> None:
        self.minutes: list[float] = []
        self.mib: dict[str, list[float]] = {name: [] for name in processes}
        self._processes = processes
        self._interval_s = interval_s
        self._leaving = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryLog:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._leaving.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def wait(self, seconds: float, tick: Callable[[], object], tick_s: float = 1.0) -> None:
        """Waits this long, or until a process has ended; calls `tick` meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._error is None:
            tick()
            time.sleep(tick_s)

    def _run(self) -> None:
        began = time.monotonic()
        while True:
            try:
                sample = {name: resident_mib(pid) for name, pid in self._processes.items()}
            except OSError as error:
                self._error = error
                return
            self.minutes.append((time.monotonic() - began) / 60)
            for name, value in sample.items():
                self.mib[name].append(value)
            if self._leaving.wait(self._interval_s):
                return
