"""The soak's verdict: it finds a leak, and nothing else. Part of `make test`."""

from __future__ import annotations

import math
import mmap
import os

import pytest

from tests.chaos.memory import Flatness, MemoryLog, flatness, resident_mib

MINUTES = [sample / 12 for sample in range(240)]


def test_leak_is_found() -> None:
    """Growth of a megabyte per minute is a leak."""
    judged = flatness(MINUTES, [100 + minute for minute in MINUTES])
    assert not judged.is_flat
    assert judged.growth_mib == pytest.approx(15, abs=0.2)


def test_warm_up_steps_and_waves_are_no_leak() -> None:
    """Growth that ends with the warm-up, a wave, and a few peaks are flat."""
    mib = [100 + min(minute, 4) * 20 + 5 * math.sin(7 * minute) for minute in MINUTES]
    mib[100] = mib[200] = 500
    assert flatness(MINUTES, mib).is_flat


def test_shrinking_is_flat() -> None:
    """Memory that shrinks is not a leak."""
    assert Flatness(median_mib=100, growth_mib=-50, allowed_mib=8).is_flat


def test_own_memory_is_sampled() -> None:
    """Growth of a process's memory is seen; a process that has ended is an error."""
    with MemoryLog({"self": os.getpid()}, interval_s=0.01) as log:
        log.wait(0.05, lambda: None, tick_s=0.01)
        ballast = mmap.mmap(-1, 2**26)  # fresh pages, whatever memory an earlier test left to this process
        ballast.write(b"x" * 2**26)
        log.wait(0.1, lambda: None, tick_s=0.01)
    assert log.mib["self"][-1] - log.mib["self"][0] > 50
    ballast.close()
    assert resident_mib(os.getpid()) > 10
    with pytest.raises(OSError, match="No such"), MemoryLog({"gone": 2**22 + 1}, interval_s=0.01):
        pass
