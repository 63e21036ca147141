"""``polyhead-serve``: runs tritonserver over a model repository, safe by default, and keeps it answering."""

from __future__ import annotations

import argparse
import logging
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import tempfile
from pathlib import Path

from polyhead.canary import Canary
from polyhead.errors import PolyheadError, RepositoryError
from polyhead.server_process import CPU_NOISE, EXIT_TIMEOUT_S, ServerProcess
from polyhead.supervisor import StartError, Timing, log, supervise
from polyhead.triton_install import TritonInstall, find_triton

# With any of these open, whoever reaches the port can run code, read memory or silence the server.
RESTRICTED = ("model-repository", "model-config", "shared-memory", "logging", "trace", "statistics")
ADMIN_HEADER = "polyhead-admin-key"
LAST_PORT = 65535
LOG_FLAGS = {"warning": ["--log-info=false"], "info": [], "verbose": ["--log-verbose=1"]}


class AddressError(PolyheadError):
    """An address, a port or a key cannot be used."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; each option's default is its environment variable's value."""
    parser = argparse.ArgumentParser(
        prog="polyhead-serve",
        description="Serve a Triton model repository; ready when a real inference answers, restarted when none does.",
        epilog=f"POLYHEAD_ADMIN_KEY: who sends it in the header '{ADMIN_HEADER}' (in gRPC metadata: "
        f"'triton-grpc-protocol-{ADMIN_HEADER}') may use {', '.join(RESTRICTED)}; random if not set. "
        "POLYHEAD_THREADS: threads of a model process (its share of the cores if not set). "
        "POLYHEAD_PRECISION: what the engine computes in (auto if not set).",
    )

    def add(name: str, default: object, about: str, **more: object) -> None:
        variable = "POLYHEAD_" + name.upper().replace("-", "_")
        about = f"{about} (default: {default}; env {variable})"
        value = os.environ.get(variable, default)
        parser.add_argument(f"--{name}", default=value, help=about, **more)  # type: ignore[arg-type] # all are its own

    add("repository", "model_repository", "the model repository", type=Path)
    add("address", "127.0.0.1", "address to listen on; no TLS here: put a proxy before any but loopback")
    add("http-port", 8000, "HTTP port", type=int)
    add("grpc-port", 8001, "gRPC port", type=int)
    add("metrics-port", 8002, "Prometheus port", type=int)
    add("log-level", "warning", f"how much Triton logs: {', '.join(LOG_FLAGS)}")
    add("startup-timeout-s", 300.0, "how long a start may take", type=float)
    add("probe-interval-s", 5.0, "pause between two canary inferences", type=float)
    parser.add_argument("--dry-run", action="store_true", help="print the shell commands to run it by hand")
    settings = parser.parse_args(argv)
    if settings.log_level not in LOG_FLAGS:
        parser.error(f"--log-level: must be one of {', '.join(LOG_FLAGS)}, got {settings.log_level!r}")
    for name in ("startup_timeout_s", "probe_interval_s"):
        if not getattr(settings, name) > 0:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, got {getattr(settings, name)}")
    return settings


def models_with_checkpoint(repository: Path) -> list[str]:
    """The models to serve.

    Raises:
        RepositoryError: the repository is missing or holds no checkpoint.
    """
    if not repository.is_dir():
        raise RepositoryError(f"--repository {repository}: no such folder")
    models = sorted({path.parents[2].name for path in repository.glob("*/[0-9]*/checkpoint/config.json")})
    if not models:
        raise RepositoryError(f"--repository {repository}: holds no checkpoint; polyhead-export puts one in")
    # Triton would try to load it, and fail as a whole.
    empty = sorted({path.parent.name for path in repository.glob("*/config.pbtxt")} - set(models))
    if empty:
        raise RepositoryError(
            f"--repository {repository}: {empty[0]} holds no checkpoint, which keeps {models[0]} from being served; "
            "export one to it, or keep your models in a repository of their own (polyhead-export --repository DIR)"
        )
    return models


def check_ports(settings: argparse.Namespace) -> None:
    """Raises AddressError if a port is out of range, given twice or not free; Triton says so much later."""
    taken: dict[int, str] = {}
    for option in ("http_port", "grpc_port", "metrics_port"):
        port, flag = getattr(settings, option), "--" + option.replace("_", "-")
        if not 1 <= port <= LAST_PORT:
            raise AddressError(f"{flag} {port}: must lie in 1 to {LAST_PORT}")
        if port in taken:
            raise AddressError(f"{flag} {port}: {taken[port]} has the same port")
        taken[port] = flag
        try:
            found = socket.getaddrinfo(settings.address, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as probe:
                # As Triton does: connections that ended on this port are no hindrance.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            place = f"{settings.address}:{port}"
            raise AddressError(f"{flag} {port}: cannot listen on {place} ({error.strerror})") from error


def admin_key() -> str:
    """The key to the restricted APIs; raises AddressError if Triton could not read it out of its flag."""
    key = os.environ.get("POLYHEAD_ADMIN_KEY") or secrets.token_urlsafe(24)
    if not re.fullmatch(r"[A-Za-z0-9._~-]{16,}", key):
        raise AddressError("POLYHEAD_ADMIN_KEY: must be 16 or more letters, digits and '.', '_', '~', '-'")
    return key


def has_gpu() -> bool:
    """Whether a CUDA device is there; asking torch would take seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def server_command(
    settings: argparse.Namespace, install: TritonInstall, backends: Path, shm_prefix: str, key: str
) -> list[str]:
    """tritonserver with flags that expose nothing but inference, metadata and health."""
    restricted = f"{','.join(RESTRICTED)}:{ADMIN_HEADER}={key}"
    return [
        str(install.binary),
        f"--model-repository={settings.repository.resolve()}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        *(f"--{name}-address={settings.address}" for name in ("http", "grpc", "metrics")),
        f"--http-port={settings.http_port}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-port={settings.metrics_port}",
        f"--allow-gpu-metrics={'true' if has_gpu() else 'false'}",
        "--metrics-config=summary_latencies=true",  # quantiles of the time in the queue
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *([f"--backend-directory={backends}"] if install.backend_files else []),
        *LOG_FLAGS[settings.log_level],
    ]


def print_by_hand(command: list[str], install: TritonInstall, backends: Path) -> None:
    """Prints a shell script that does what `serve` does, without the supervisor."""
    if install.backend_files:
        print(shlex.join(["mkdir", "-p", str(backends / "python")]))
        print(shlex.join(["ln", "-sf", *map(str, install.backend_files), str(backends / "python")]))
    for name, value in install.environment(os.environ).items():
        print(f"export {name}={shlex.quote(value)}")
    print(shlex.join(["exec", *command]))


def serve(settings: argparse.Namespace) -> int:
    """Runs the server until a signal; returns the exit code."""
    models = models_with_checkpoint(settings.repository)
    install, key = find_triton(), admin_key()
    run = f"polyhead_{os.getpid()}_{secrets.token_hex(3)}"
    if settings.dry_run:
        backends = Path(tempfile.gettempdir()) / f"{run}_backends"
        print_by_hand(server_command(settings, install, backends, run, key), install, backends)
        return 0
    check_ports(settings)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.address, settings.address)
    host = f"[{host}]" if ":" in host else host
    places = {name: f"{host}:{getattr(settings, name + '_port')}" for name in ("http", "grpc", "metrics")}
    ready = f"ready {' '.join(f'{name}={place}' for name, place in places.items())} models={','.join(models)}"
    with tempfile.TemporaryDirectory(prefix="polyhead_backends_") as folder:
        if install.backend_files:
            install.link_backends(Path(folder))
        command = server_command(settings, install, Path(folder), run, key)
        environment = {**os.environ, **install.environment(os.environ)}
        server = ServerProcess(command, environment, shm_prefix=run, muted=() if has_gpu() else CPU_NOISE)
        # SIGTERM ends everything that SIGINT would: the wait in progress, a pause, a hanging canary.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            supervise(
                server,
                Canary(places["http"], places["metrics"], models),
                Timing(settings.startup_timeout_s, settings.probe_interval_s),
                on_ready=lambda: print(ready, flush=True),
            )
        except KeyboardInterrupt:
            log.info("stopping")
        except StartError as error:
            log.error("the server did not start: %s", error)
            return 1
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            server.stop()
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 stopped by a signal, 1 failed to start, 2 asked wrongly."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s polyhead-serve %(levelname)s %(message)s")
    try:
        return serve(parse(argv))
    except PolyheadError as error:
        print(f"polyhead-serve: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
