"""The tritonserver to run: where it is installed, what it needs around it, its flags, and the key to its admin APIs.

In the wheel the stub for this Python is in another folder than the backend that starts it. So each run makes a backend
folder of links; site-packages stays as it is.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead.errors import MachineError, PolyheadError
from polyhead.repository import models_with_checkpoint
from polyhead_serving.orphans import shm_argument
from polyhead_serving.ports import SHARED, AddressError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
# Anyone who can use one of these can run code, read memory or silence the server. They need the key in this header.
ADMIN_APIS = ("model-repository", "model-config", "shared-memory", "logging", "trace", "statistics")
ADMIN_HEADER = "polyhead-admin-key"
# A header that no request can have: a name with a colon does not exist in HTTP/1, nor one with capitals in HTTP/2.
CLOSED_RULE = "Closed: no key opens this=never"
DEVICE_VARIABLE = "POLYHEAD_SERVE_DEVICE"  # of --device; model processes read it too
LOG_FLAGS = {"warning": ["--log-info=false"], "info": [], "verbose": ["--log-verbose=1"]}


class InstallError(PolyheadError):
    """tritonserver, or something that it needs, is missing."""


@dataclass(frozen=True)
class ServeOptions:
    """The options of ``polyhead-serve``; `serve.command` describes and checks each of them."""

    repository: Path
    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    probe_port: int
    control: str
    device: str
    log_level: str
    log_format: str
    startup_timeout_s: float
    probe_interval_s: float
    canary_timeout_s: float
    canary_failures: int
    drain_s: float
    exit_timeout_s: float
    dry_run: bool

    def ports(self) -> dict[str, int]:
        """The four ports by name: http, grpc, metrics, probe."""
        return {
            "http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port, "probe": self.probe_port
        }  # fmt: skip


@dataclass(frozen=True)
class TritonInstall:
    """An installed tritonserver.

    Attributes:
        binary: the executable.
        backend_files: what the Python backend's folder must contain; empty if the server has its own backends.
        library_folders: go to the front of LD_LIBRARY_PATH.
    """

    binary: Path
    backend_files: tuple[Path, ...] = ()
    library_folders: tuple[Path, ...] = ()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables to set for the server. Its model processes use the packages of the first ``bin`` on PATH."""
        changed = {"PATH": _prepend([Path(sys.prefix) / "bin"], environ.get("PATH", os.defpath))}
        if self.library_folders:
            changed["LD_LIBRARY_PATH"] = _prepend(self.library_folders, environ.get("LD_LIBRARY_PATH", ""))
        return changed

    def link_backends(self, folder: Path) -> None:
        """Makes ``folder/python``, a Python backend with this Python's stub."""
        (folder / "python").mkdir(parents=True)
        for file in self.backend_files:
            (folder / "python" / file.name).symlink_to(file)


def find_triton() -> TritonInstall:
    """The tritonserver on PATH, else the one in nvidia-pytriton's wheel in this environment.

    Raises:
        InstallError: none is found, or the wheel has no stub or libpython for this Python.
    """
    if found := shutil.which("tritonserver"):
        return TritonInstall(Path(found))
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise InstallError(f"tritonserver: neither on PATH nor in {sys.prefix}; install nvidia-pytriton==0.7.0")
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
        # The backend looks for its libraries beside the link through which it was opened.
        library_folders=(*_libpython_folder(), package.parent / "nvidia_pytriton.libs"),
    )
    if missing := [file for file in (install.binary, *install.backend_files) if not file.is_file()]:
        raise InstallError(f"tritonserver in {package}: {missing[0]} is missing; reinstall nvidia-pytriton")
    if not can_load(LIBPYTHON, install.environment(os.environ)):
        raise InstallError(
            f"{LIBPYTHON}: cannot be loaded, and Triton's Python backend needs it; install Debian's package "
            f"libpython{PYTHON}, or run setup/libpython.sh {sys.prefix}"
        )
    return install


def can_load(library: str, changed: Mapping[str, str]) -> bool:
    """Whether a new process with these variables can load the library; a process reads LD_LIBRARY_PATH only once."""
    program = f"import ctypes; ctypes.CDLL({library!r})"
    environment = {**os.environ, **changed}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def has_gpu() -> bool:
    """Whether there is a CUDA device. Importing torch to find out would take seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def uses_gpu(options: ServeOptions) -> bool:
    """Whether the models may compute on a GPU.

    Raises:
        MachineError: a GPU is required and there is none.
    """
    if options.device == "cuda" and not has_gpu():
        raise MachineError("--device cuda: this machine has no GPU (no /dev/nvidia0); --device auto would use the CPU")
    return options.device != "cpu" and has_gpu()


def server_environment(options: ServeOptions, install: TritonInstall, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for the server and its model processes."""
    changed = {**install.environment(environ), DEVICE_VARIABLE: options.device}
    if options.device == "cpu":
        changed["CUDA_VISIBLE_DEVICES"] = "-1"  # no GPU
    return changed


def server_command(options: ServeOptions, install: TritonInstall, backends: Path, run: str) -> list[str]:
    """tritonserver with flags that open only inference, metadata and health.

    Raises:
        RepositoryError: the repository holds nothing that Triton can load now.
    """
    models = models_with_checkpoint(options.repository)
    return [
        str(install.binary),
        f"--model-repository={options.repository.resolve()}",
        f"--model-control-mode={options.control}",
        *(f"--load-model={model}" for model in models if options.control == "explicit"),
        "--disable-auto-complete-config",
        *(f"--{name}-address={options.address}" for name in ("http", "grpc", "metrics")),
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
        *(f"--reuse-{name}-port=true" for name in SHARED),  # with the supervisor, which reserves them
        f"--allow-gpu-metrics={'true' if uses_gpu(options) else 'false'}",
        "--metrics-config=summary_latencies=true",  # quantiles of the time in the queue
        f"--exit-timeout-secs={math.ceil(options.exit_timeout_s)}",
        *restrictions(None),
        shm_argument(run),
        *([f"--backend-directory={backends}"] if install.backend_files else []),
        *LOG_FLAGS[options.log_level],
    ]


def restrictions(key: str | None) -> list[str]:
    """The flags that restrict the admin APIs to requests with the key; without a key, to none."""
    rule = f"{','.join(ADMIN_APIS)}:{f'{ADMIN_HEADER}={key}' if key else CLOSED_RULE}"
    return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]


def admin_key(control: str) -> str | None:
    """The key to the admin APIs, POLYHEAD_ADMIN_KEY; None: nobody can use them.

    Raises:
        AddressError: Triton could not read the key from its flag, or polyhead-deploy needs one and it is not set.
    """
    key = os.environ.get("POLYHEAD_ADMIN_KEY") or None
    if key is None and control == "explicit":
        raise AddressError("POLYHEAD_ADMIN_KEY: must be set for --control explicit, because polyhead-deploy sends it")
    if key is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{16,}", key):
        raise AddressError("POLYHEAD_ADMIN_KEY: must be 16 or more letters, digits and '.', '_', '~', '-'")
    return key


def _libpython_folder() -> list[Path]:
    library_folder = sysconfig.get_config_var("LIBDIR")
    places = [Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib", Path(library_folder or "/nonexistent")]
    return [place for place in places if (place / LIBPYTHON).is_file()][:1]


def _prepend(folders: Sequence[Path], rest: str) -> str:
    # An empty entry would mean the current folder.
    return ":".join([*(str(folder) for folder in folders), *(part for part in rest.split(":") if part)])
