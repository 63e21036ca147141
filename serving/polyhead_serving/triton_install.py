"""Where tritonserver is, and what it needs around it: the Python backend, its stub and libpython.

The wheel's stub for this Python stands in another folder than the backend that starts it, so a backend folder
of links is made for the server's life; site-packages stays as it is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyhead.errors import PolyheadError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"


class InstallError(PolyheadError):
    """tritonserver or something that it needs is missing."""


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver.

    Attributes:
        binary: the executable.
        backend_files: what the Python backend's folder must hold; empty if the server has its own backends.
        library_folders: goes to the front of LD_LIBRARY_PATH.
    """

    binary: Path
    backend_files: tuple[Path, ...] = ()
    library_folders: tuple[Path, ...] = ()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What to set for the server: its model processes see the packages of the first ``bin`` on PATH."""
        changed = {"PATH": _prepend([Path(sys.prefix) / "bin"], environ.get("PATH", os.defpath))}
        if self.library_folders:
            changed["LD_LIBRARY_PATH"] = _prepend(self.library_folders, environ.get("LD_LIBRARY_PATH", ""))
        return changed

    def link_backends(self, folder: Path) -> None:
        """Makes ``folder/python``, a backend whose stub is this Python's."""
        (folder / "python").mkdir(parents=True)
        for file in self.backend_files:
            (folder / "python" / file.name).symlink_to(file)


def find_triton() -> TritonInstall:
    """The tritonserver on PATH, else the one in nvidia-pytriton's wheel beside this Python.

    Raises:
        InstallError: there is none, or the wheel's lacks a stub or libpython for this Python.
    """
    if found := shutil.which("tritonserver"):
        return TritonInstall(Path(found))
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise InstallError(f"tritonserver: neither on PATH nor in {sys.prefix} (nvidia-pytriton==0.7.0 brings one)")
    return find_in_wheel(Path(wheel.origin).parent)


def find_in_wheel(package: Path) -> TritonInstall:
    """The tritonserver in the package ``pytriton``; raises InstallError if it cannot run with this Python."""
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        there = sorted(folder.name for folder in (root / "python_backend_stubs").glob("*"))
        only = ", ".join(there) or "none"
        raise InstallError(f"tritonserver in {package}: has no stub for Python {PYTHON}, only for {only}")
    backend = root / "backends" / "python"
    install = TritonInstall(
        binary=root / "bin" / "tritonserver",
        backend_files=(backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub),
        # The backend looks for its libraries relative to where it is opened, which is a link elsewhere.
        library_folders=(*_libpython_folder(), package.parent / "nvidia_pytriton.libs"),
    )
    if lacking := [file for file in (install.binary, *install.backend_files) if not file.is_file()]:
        raise InstallError(f"tritonserver in {package}: {lacking[0]} is missing; reinstall nvidia-pytriton")
    if not loads(LIBPYTHON, install.environment(os.environ)):
        raise InstallError(
            f"{LIBPYTHON}: cannot be loaded, and Triton's Python backend needs it; install Debian's package "
            f"libpython{PYTHON}, or run setup/libpython.sh {sys.prefix}"
        )
    return install


def loads(library: str, changed: Mapping[str, str]) -> bool:
    """Whether the loader finds the library there; asks a fresh process, as it reads its environment once."""
    program = f"import ctypes; ctypes.CDLL({library!r})"
    environment = {**os.environ, **changed}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def _libpython_folder() -> list[Path]:
    library_folder = sysconfig.get_config_var("LIBDIR")
    places = [Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib", Path(library_folder or "/nonexistent")]
    return [place for place in places if (place / LIBPYTHON).is_file()][:1]


def _prepend(folders: list[Path] | tuple[Path, ...], rest: str) -> str:
    # An empty entry would mean the current folder.
    return ":".join([*(str(folder) for folder in folders), *(part for part in rest.split(":") if part)])
