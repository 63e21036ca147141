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

SOURCE = Path("polyhead/engine/cpu/kernels/kernels.c")
# The keys are torch's names for the capability of a CPU.
TARGETS = {"AVX512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "AVX2": ["-march=x86-64-v3"]}
# Only the options that vectorized sums need: NaN and infinity keep their meaning.
FLAGS = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
         "-fassociative-math", "-ffp-contract=fast"]  # fmt: skip


class KernelsHook(BuildHookInterface):
    """Puts a shared library per target next to the source, in a checkout and in a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles each target; prints a line for one that fails."""
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if self.target_name != "wheel" or platform.machine() != "x86_64" or platform.system() != "Linux":
            return
        source = Path(self.root) / SOURCE
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        for target, flags in TARGETS.items():
            library = source.with_name(f"kernels_{target}.so")
            # Compiled under another name first, because two environments may install from one checkout.
            part = library.with_name(f"{library.name}.{os.getpid()}")
            command = [*FLAGS, *flags, f'-DSOURCE="{digest}"', "-o", str(part), str(source), "-lm"]
            if reason := _failure(compiler, command):
                print(f"polyhead: the CPU engine runs without its kernels for {target}: {reason}", file=sys.stderr)
                library.unlink(missing_ok=True)
                continue
            part.replace(library)
            build_data["artifacts"].append(str(SOURCE.parent / "*.so"))
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"


def _failure(compiler: str | None, arguments: list[str]) -> str:
    """Compiles; returns the reason for a failure, or an empty string."""
    if compiler is None:
        return "no C compiler found"
    try:
        # CC may hold options too.
        done = subprocess.run([*shlex.split(compiler), *arguments], capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        return f"{compiler} cannot be run ({error})"
    return f"{compiler} ended with {done.returncode}\n{done.stderr}" if done.returncode else ""
