"""``polyhead-serve``: runs tritonserver over a model repository, safe by default, and keeps it answering.

The command line; what it starts is supervised in `supervisor`, asked in `canary` and told about in `health`.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType

from polyhead.errors import PolyheadError
from polyhead.repository import models_with_checkpoint
from polyhead_serving.canary import Canary
from polyhead_serving.health import Health
from polyhead_serving.log_lines import pass_on, set_up_logging, to_json
from polyhead_serving.orphans import backends_of, remove_leftovers, run_of_ones_own
from polyhead_serving.probe_port import probe_port
from polyhead_serving.serve_options import ADMIN_HEADER, LOG_FLAGS, RESTRICTED, admin_key, check_ports, parse
from polyhead_serving.server_process import CPU_NOISE, STACK_BYTES, ServerProcess, stack_bytes
from polyhead_serving.supervisor import StartError, Timing, log, supervise
from polyhead_serving.triton_install import TritonInstall, find_triton


def has_gpu() -> bool:
    """Whether a CUDA device is there; asking torch would take seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def server_command(
    settings: argparse.Namespace, install: TritonInstall, backends: Path, shm_prefix: str, key: str
) -> list[str]:
    """tritonserver with flags that expose nothing but inference, metadata and health."""
    restricted = f"{','.join(RESTRICTED)}:{ADMIN_HEADER}={key}"
    models = models_with_checkpoint(settings.repository) if settings.control == "explicit" else []
    return [
        str(install.binary),
        f"--model-repository={settings.repository.resolve()}",
        f"--model-control-mode={settings.control}",
        *(f"--load-model={model}" for model in models),
        "--disable-auto-complete-config",
        *(f"--{name}-address={settings.address}" for name in ("http", "grpc", "metrics")),
        f"--http-port={settings.http_port}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-port={settings.metrics_port}",
        f"--allow-gpu-metrics={'true' if has_gpu() else 'false'}",
        "--metrics-config=summary_latencies=true",  # quantiles of the time in the queue
        f"--exit-timeout-secs={math.ceil(settings.exit_timeout_s)}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *([f"--backend-directory={backends}"] if install.backend_files else []),
        *LOG_FLAGS[settings.log_level],
    ]


def checked_command(
    settings: argparse.Namespace, install: TritonInstall, backends: Path, shm_prefix: str, key: str
) -> list[str]:
    """The same for a repository that Triton can load now; it may have changed since the last start."""
    models_with_checkpoint(settings.repository)
    return server_command(settings, install, backends, shm_prefix, key)


def print_by_hand(command: list[str], install: TritonInstall, backends: Path) -> None:
    """Prints a shell script that does what `serve` does, without the supervisor."""
    if install.backend_files:
        print(shlex.join(["mkdir", "-p", str(backends / "python")]))
        print(shlex.join(["ln", "-sf", *map(str, install.backend_files), str(backends / "python")]))
    for name, value in install.environment(os.environ).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"ulimit -S -s {STACK_BYTES // 1024} || true")
    print(shlex.join(["exec", *command]))


class Stop:
    """What SIGTERM and SIGINT do: the first ends whatever is waited for, each further one only a drain's pause."""

    def __init__(self) -> None:
        self.hurry = threading.Event()
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal, in the main thread."""
        if self._asked:
            log.info("stopping already: accepted requests are being answered")
            self.hurry.set()
            return
        self._asked = True
        raise KeyboardInterrupt

    def listen(self) -> None:
        """From now on signals come here."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self)

    def ignore(self) -> None:
        """From now on signals do nothing: what is left takes no time."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def serve(settings: argparse.Namespace) -> int:
    """Runs the server until a signal; returns the exit code."""
    models_with_checkpoint(settings.repository)
    install, key = find_triton(), admin_key(settings.control)
    if settings.dry_run:
        run = f"polyhead_{os.getpid()}"
        print_by_hand(server_command(settings, install, backends_of(run), run, key), install, backends_of(run))
        return 0
    remove_leftovers()
    check_ports(settings)
    with run_of_ones_own() as run:
        if install.backend_files:
            install.link_backends(backends_of(run))
        try:
            return run_server(settings, install, run, key)
        finally:
            shutil.rmtree(backends_of(run), ignore_errors=True)


def run_server(settings: argparse.Namespace, install: TritonInstall, run: str, key: str) -> int:
    """Supervises a server whose backends are linked; returns the exit code."""
    models = models_with_checkpoint(settings.repository)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.address, settings.address)
    host = f"[{host}]" if ":" in host else host
    places = {name: f"{host}:{getattr(settings, name + '_port')}" for name in ("http", "grpc", "metrics", "probe")}
    ready = f"ready {' '.join(f'{name}={place}' for name, place in places.items())} models={','.join(models)}"
    if stack_bytes() < STACK_BYTES:
        log.warning("the hard limit of the stack, %d KiB, lets nested JSON end the server", stack_bytes() // 1024)
    server = ServerProcess(
        lambda: checked_command(settings, install, backends_of(run), run, key),
        {**os.environ, **install.environment(os.environ)},
        shm_prefix=run,
        muted=() if has_gpu() else CPU_NOISE,
        pass_on=partial(pass_on, kind=settings.log_format),
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        exit_timeout_s=settings.exit_timeout_s,
    )
    health, stop = Health(server.is_broken), Stop()
    timing = Timing(
        settings.startup_timeout_s, settings.probe_interval_s, settings.canary_timeout_s, settings.canary_failures
    )
    canary = Canary(places["http"], places["metrics"], models)

    def announce() -> None:
        is_json = settings.log_format == "json"
        print(to_json("info", "polyhead-serve", ready, time.time()) if is_json else ready, flush=True)

    try:
        with probe_port(health, settings.address, settings.probe_port):
            try:
                stop.listen()
                supervise(server, canary, timing, announce, health)
            except KeyboardInterrupt:
                health.drain()
                log.info("stopping: not ready for %g s, then accepted requests are answered", settings.drain_s)
                if server.exit_code is None:
                    stop.hurry.wait(settings.drain_s)
                if not server.stop():
                    log.error(
                        "accepted requests may be lost: --exit-timeout-s %g ended under them", settings.exit_timeout_s
                    )
                    return 1
            except StartError as error:
                log.error("the server did not start: %s", error)
                return 1
    finally:
        stop.ignore()
        server.kill()
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parse(argv)
    set_up_logging(settings.log_format)
    try:
        return serve(settings)
    except PolyheadError as error:
        if settings.log_format == "json":
            log.error("%s", error)
        else:
            print(f"polyhead-serve: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
