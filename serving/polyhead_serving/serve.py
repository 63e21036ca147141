"""``polyhead-serve``: runs tritonserver over a model repository, safe by default, and keeps it answering."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from polyhead.errors import MachineError, PolyheadError
from polyhead.repository import models_with_checkpoint, take_back_interrupted
from polyhead_serving.canary import Canary
from polyhead_serving.health import Health, probe_port
from polyhead_serving.log_lines import log, set_up_logging, to_json
from polyhead_serving.orphans import SHARED_MEMORY, backends_folder, remove_orphans, run_lock
from polyhead_serving.ports import reserved_ports
from polyhead_serving.private_files import UMASK
from polyhead_serving.server_process import STACK_BYTES, ServerProcess, stack_bytes
from polyhead_serving.supervisor import StartError, supervise
from polyhead_serving.triton import (
    ADMIN_APIS,
    ADMIN_HEADER,
    ServeOptions,
    TritonInstall,
    admin_key,
    find_triton,
    restrictions,
    server_command,
    server_environment,
    uses_gpu,
)
from polyhead_serving.triton_version import log_version
from polyhead_serving.typer_app import new_app, seconds

HELP = "Serve a Triton model repository. Restarts tritonserver if it stops answering a real inference."
EPILOG = f"""\b
Examples:
  polyhead-serve --repository model_repository
  curl 127.0.0.1:8003/ready                   # 200 if the last canary, a real inference, was answered
  POLYHEAD_ADMIN_KEY=... polyhead-serve --control explicit    # then: polyhead-deploy CHECKPOINT, without a restart

\b
What happens when something fails, on SIGTERM and on Ctrl-C: docs/serving.md.

\b
Other environment variables:
  POLYHEAD_ADMIN_KEY   opens {", ".join(ADMIN_APIS)}
                       for anyone who sends it in the header '{ADMIN_HEADER}'
                       (gRPC metadata: 'triton-grpc-protocol-{ADMIN_HEADER}'); nobody can use them if it is not set
  POLYHEAD_THREADS     threads of a model process; by default its share of the cores
  POLYHEAD_PRECISION   auto (default), fp32, bf16 or int8: docs/precision.md
  POLYHEAD_ANSWER_LOG_KEY   the secret of an answer log of hashes: docs/answer_log.md

\b
Exit codes: 0 stopped by a signal; 1 the first start failed, or accepted requests were lost at the end;
2 wrong options, repository or port
"""

KEY_PLACE = "KEY"

app = new_app("POLYHEAD_SERVE")


@app.command(help=HELP, epilog=EPILOG)
def command(
    context: typer.Context,
    repository: Annotated[Path, typer.Option(help="The model repository.")] = Path("model_repository"),
    address: Annotated[
        str,
        typer.Option(
            help="Address to listen on. There is no TLS: put deploy/nginx in front of it for any other address."
        ),
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="gRPC port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Triton's Prometheus metrics.")] = 8002,
    probe_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of /live, /ready and the supervisor's /metrics.")
    ] = 8003,
    control: Annotated[
        Literal["none", "explicit"],
        typer.Option(
            help="explicit: polyhead-deploy may replace the served version; none: the version cannot be replaced."
        ),
    ] = "none",
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        typer.Option(help="auto: a GPU if there is one; cuda: do not start without a GPU; cpu: use no GPU."),
    ] = "auto",
    log_level: Annotated[Literal["warning", "info", "verbose"], typer.Option(help="How much Triton logs.")] = "warning",
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="json: one object per line, also for Triton's lines.")
    ] = "text",
    startup_timeout_s: Annotated[float, seconds("How long a start may take.")] = 300.0,
    probe_interval_s: Annotated[float, seconds("Pause after a canary, a real inference, is answered.")] = 2.0,
    canary_timeout_s: Annotated[float, seconds("How long to wait for a canary's answer.")] = 5.0,
    canary_failures: Annotated[int, typer.Option(min=1, help="Failed canaries in a row that lead to a restart.")] = 3,
    drain_s: Annotated[
        float,
        seconds("How long /ready says 503 before the server stops, so that load balancers stop sending.", least=0),
    ] = 1.0,
    exit_timeout_s: Annotated[
        float, seconds("How long accepted requests may take after a stop signal, including up to 10 s in the queue.")
    ] = 30.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print shell commands that run the server without the supervisor, and exit."),
    ] = False,
) -> None:
    """Reads the options and serves."""
    options = ServeOptions(**context.params)
    set_up_logging(options.log_format)
    try:
        code = serve(options)
    except PolyheadError as error:
        if options.log_format == "json":
            log.error("%s", error)
        else:
            print(f"polyhead-serve: {error}", file=sys.stderr)
        code = 2
    raise typer.Exit(code)


def serve(options: ServeOptions) -> int:
    """Runs the server until a signal; returns the exit code."""
    if not options.dry_run:
        take_back_interrupted(options.repository, log.info)
    models = models_with_checkpoint(options.repository)
    install, key = find_triton(), admin_key(options.control)
    uses_gpu(options)  # refuses to start without a GPU that is required
    if options.dry_run:
        print_script(options, install, key)
        return 0
    remove_orphans()
    with reserved_ports(options.address, options.ports()), ExitStack() as held:
        try:
            run = held.enter_context(run_lock())
            if install.backend_files:
                install.link_backends(backends_folder(run))
        except OSError as error:
            raise MachineError(f"{error}: {SHARED_MEMORY} and the temporary folder must be writable") from error
        return run_server(options, models, install, run, key)


def print_script(options: ServeOptions, install: TritonInstall, key: str | None) -> None:
    """Prints a shell script that runs the server without the supervisor."""
    folder = '"$backends"/python'
    backends = Path("BACKENDS")
    command = shlex.join(server_command(options, install, backends, f"polyhead_{secrets.token_hex(8)}"))
    command = command.replace(f"--backend-directory={backends}", '--backend-directory="$backends"')
    print(f"umask {UMASK:03o}")
    if install.backend_files:
        print("backends=$(mktemp -d)")
        print(f"mkdir {folder}")
        print(shlex.join(["ln", "-s", *map(str, install.backend_files)]), folder)
    for name, value in server_environment(options, install, os.environ).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"ulimit -S -s {STACK_BYTES // 1024} || true")
    if key is not None:
        print("# Every user of this machine can read the key in this command line. polyhead-serve hides it.")
        for closed, opened in zip(restrictions(None), restrictions(KEY_PLACE), strict=True):
            command = command.replace(shlex.quote(closed), opened.replace(KEY_PLACE, '"${POLYHEAD_ADMIN_KEY:?}"'))
    print(f"exec {command}")


class StopSignal:
    """Handles SIGTERM and SIGINT. The first one starts the drain; a second one skips its pause, never the answers."""

    def __init__(self) -> None:
        self.skip_pause = threading.Event()
        self._is_stopping = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal, in the main thread."""
        if self._is_stopping:
            log.info("already stopping: accepted requests are being answered")
            self.skip_pause.set()
            return
        self._is_stopping = True
        raise KeyboardInterrupt


def handle_stop_signals(handler: StopSignal | signal.Handlers) -> None:
    """Installs the handler, even if the parent process ignores SIGINT, as a script does for `command &`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def run_server(options: ServeOptions, models: list[str], install: TritonInstall, run: str, key: str | None) -> int:
    """Supervises the server until a signal, then drains it; returns the exit code."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.address, options.address)
    host = f"[{host}]" if ":" in host else host
    urls = {name: f"{host}:{port}" for name, port in options.ports().items()}
    if stack_bytes() < STACK_BYTES:
        log.warning("the stack's hard limit is %d KiB: deeply nested JSON can end the server", stack_bytes() // 1024)
    server = ServerProcess(options, install, run, key)
    health, stop = Health(server.is_broken), StopSignal()
    canary = Canary(urls["http"], urls["metrics"], models)

    def announce() -> None:
        ready = f"ready {' '.join(f'{name}={url}' for name, url in urls.items())} models={','.join(models)}"
        is_json = options.log_format == "json"
        print(to_json("info", "polyhead-serve", ready, time.time()) if is_json else ready, flush=True)
        server.check_regions()
        log_version(urls["http"], options)

    try:
        with probe_port(health, options.address, options.probe_port):
            try:
                handle_stop_signals(stop)
                supervise(server, canary.check, options, announce, health)
            except KeyboardInterrupt:
                health.drain()
                log.info("stopping: /ready says 503 for %g s, then accepted requests are answered", options.drain_s)
                if server.exit_code is None:
                    stop.skip_pause.wait(options.drain_s)
                if not server.drain():
                    wrong = "accepted requests may be lost: --exit-timeout-s %g was too short"
                    log.error(wrong, options.exit_timeout_s)
                    return 1
            except StartError as error:
                log.error("the server did not start: %s", error)
                return 1
    finally:
        handle_stop_signals(signal.SIG_IGN)  # the rest takes no time
        server.kill()
    return 0


def main(arguments: list[str] | None = None) -> None:
    """The console script; ends with SystemExit."""
    app(arguments, prog_name="polyhead-serve")


if __name__ == "__main__":
    main()
