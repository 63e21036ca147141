"""Runs functions in a process in which the compiled AMX library works: on AMX, or with its instructions emulated.

Without AMX, ``amx_emulator.c`` is preloaded there. It emulates the tile instructions, which takes about 10 microseconds
per trap, and ends the process with a line on stderr where the processor would refuse one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import pytest
import torch

from polyhead.engine.cpu import kernels

LIBRARY = Path(kernels.__file__).with_name("kernels_AMX.so")  # as it is installed
INSTRUCTIONS = (
    "ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tileloaddt1", "tilestored", "tdpbf16ps",
    "tdpbusd",
)  # fmt: skip

_P = ParamSpec("_P")
_T = TypeVar("_T")


class OnAMX(Protocol):
    """Calls a function of a module in the process, and returns what it returned."""

    def __call__(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T: ...


def compile_emulator(folder: Path) -> Path:
    """Compiles the emulator; returns the library."""
    library = folder / "amx_emulator.so"
    source = Path(__file__).with_suffix(".c")
    flags = ["-O2", "-march=x86-64-v4", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    return library


@contextmanager
def process_on_amx(emulator: Path | None) -> Iterator[OnAMX]:
    """Starts the process; without an emulator it uses the processor's own AMX."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            if emulator:
                patch.setenv("LD_PRELOAD", str(emulator))
            pool.submit(_prepare, emulator is not None).result()
        yield lambda call, *args, **kwargs: pool.submit(call, *args, **kwargs).result()


def _prepare(is_emulated: bool) -> None:
    torch.set_num_threads(1)
    if is_emulated:
        # From here on the library's own check of the processor finds what the emulator says.
        assert ctypes.CDLL(None).amx_emulator_patch_cpuid(ctypes.CDLL(str(LIBRARY)).polyhead_amx_request) == 2


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How many instructions of each kind ran in the block, on all threads; filled in at its end."""
    counters = (ctypes.c_uint64 * len(INSTRUCTIONS)).in_dll(ctypes.CDLL(None), "amx_emulator_counts")
    before = list(counters)
    found: dict[str, int] = {}
    yield found
    found.update(zip(INSTRUCTIONS, (now - then for now, then in zip(counters, before, strict=True)), strict=True))
