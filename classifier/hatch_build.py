"""Compiles the CPU engine's kernels at installation; without a compiler the engine works, but more slowly."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("polyhead/engine/cpu/kernels")
# Only the options that vectorized sums need: NaN and infinity keep their meaning.
FLAGS = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
         "-Wno-psabi"]  # fmt: skip
SUMS = ["-fno-signed-zeros", "-fassociative-math"]
AVX512 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
# Per library the sources that are compiled, and options. AVX512 and AVX2 are torch's names for the capability of a CPU.
# AVX512BF16 stands for processors that also have VNNI. AMX stands beside it, and its sums have one order.
TARGETS = {
    "AVX512": (["kernels.c", "products.c", "training.c"], [*AVX512, *SUMS]),
    "AVX512BF16": (["kernels.c", "products.c", "training.c"], [*AVX512, "-mavx512bf16", "-mavx512vnni", *SUMS]),
    "AVX2": (["kernels.c", "products.c", "training.c"], ["-march=x86-64-v3", *SUMS]),
    "AMX": (["amx.c", "amx_attention.c"], [*AVX512, "-mavx512bf16"]),
}


class KernelsHook(BuildHookInterface):
    """Puts a shared library per target next to the source, in a checkout and in a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles each target; prints a line for one that fails."""
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if self.target_name != "wheel" or platform.machine() != "x86_64" or platform.system() != "Linux":
            return
        folder = Path(self.root) / FOLDER
        for target in TARGETS:
            library = folder / f"kernels_{target}.so"
            # Compiled under another name first, because two environments may install from one checkout.
            part = library.with_name(f"{library.name}.{os.getpid()}")
            if reason := compile_kernels(compiler, folder, target, part):
                print(f"polyhead: the CPU engine runs without its kernels for {target}: {reason}", file=sys.stderr)
                library.unlink(missing_ok=True)
                continue
            part.replace(library)
            build_data["artifacts"].append(str(FOLDER / "*.so"))
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"


def compile_kernels(compiler: str | None, folder: Path, target: str, library: Path, *options: str) -> str:
    """Compiles the sources in a folder to a library; returns the reason for a failure, or an empty string."""
    sources, flags = TARGETS[target]
    every = b"".join(source.read_bytes() for source in sorted(folder.glob("*.[ch]")))
    digest = hashlib.sha256(every).hexdigest()  # of all sources: who changes one compiles all libraries again
    files = [str(folder / source) for source in sources]
    command = [*FLAGS, *flags, *options, f'-DSOURCE="{digest}"', "-o", str(library), *files, "-lm"]
    return _failure(compiler, command)


def _failure(compiler: str | None, arguments: list[str]) -> str:
    if compiler is None:
        return "no C compiler found"
    try:
        # CC may hold options too.
        done = subprocess.run([*shlex.split(compiler), *arguments], capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        return f"{compiler} cannot be run ({error})"
    return f"{compiler} ended with {done.returncode}\n{done.stderr}" if done.returncode else ""
