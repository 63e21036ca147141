"""The build hook that compiles the CPU engine's kernels, for tests that compile some of their own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from polyhead.engine.cpu import kernels

ROOT = Path(kernels.__file__).parents[4]


@cache
def hatch_build() -> ModuleType:
    """``classifier/hatch_build.py``, which no package holds."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_sources(folder: Path) -> None:
    """Copies the kernels' sources there."""
    for source in (ROOT / hatch_build().FOLDER).glob("*.[ch]"):
        shutil.copy(source, folder)


def compiled_targets() -> list[str]:
    """The libraries' targets that this CPU can run, without AMX."""
    capabilities = ("DEFAULT", "AVX2", "AVX512")  # a machine can run its own and those before it
    own = torch.backends.cpu.get_cpu_capability()
    targets = list(capabilities[1 : capabilities.index(own) + 1]) if own in capabilities else []
    return [*targets, "AVX512BF16"] if "AVX512" in targets and torch.cpu._is_avx512_bf16_supported() else targets


def compile_stand_in(folder: Path) -> Path:
    """Compiles the AMX kernels with plain C in place of the tile instructions; returns the library.

    With AVX-512 bf16 all but these instructions is what runs on AMX; a processor that has only AVX2 takes that.
    """
    build = hatch_build()
    copy_sources(folder)
    library = folder / "stand_in.so"
    options = [] if _has_avx512_bf16() else ["-march=x86-64-v3", "-mno-avx512bf16"]
    failure = build.compile_kernels(
        os.environ.get("CC") or shutil.which("cc"), folder, "AMX", library, "-DSCALAR_TILES", *options
    )
    assert not failure, failure
    return library


def _has_avx512_bf16() -> bool:
    return " avx512_bf16 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
