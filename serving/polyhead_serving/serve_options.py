"""The options of ``polyhead-serve``: command line over environment over default, each checked once."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from polyhead.errors import PolyheadError
from polyhead_serving.log_lines import FORMATS

# With any of these open, whoever reaches the port can run code, read memory or silence the server.
RESTRICTED = ("model-repository", "model-config", "shared-memory", "logging", "trace", "statistics")
ADMIN_HEADER = "polyhead-admin-key"
LAST_PORT = 65535
LOG_FLAGS = {"warning": ["--log-info=false"], "info": [], "verbose": ["--log-verbose=1"]}
CONTROLS = ("none", "explicit")
PORTS = ("http_port", "grpc_port", "metrics_port", "probe_port")

EPILOG = f"""\
examples:
  polyhead-serve --repository model_repository
  POLYHEAD_ADMIN_KEY=... polyhead-serve --control explicit     # then: polyhead-deploy CHECKPOINT, without a restart
  curl localhost:8003/ready                                    # 200 while the last canary was answered

Readiness is a real inference, the canary, since Triton's own health endpoints stay good over a dead model process. The
whole server is restarted when a model process dies (noticed within a second), when the server ends, and when canaries
in a row fail: a hung model is noticed after at most probe-interval + canary-failures x (canary-timeout + 1) seconds.
An overloaded server is left alone as long as others are answered.

SIGTERM and Ctrl-C: /ready says 503 for --drain-s seconds, then every accepted request is answered, then it ends with 0.
A second signal cuts the waiting for load balancers short, never the answers.

environment beside that of the options:
  POLYHEAD_ADMIN_KEY   who sends it in the header '{ADMIN_HEADER}' (in gRPC metadata
                       'triton-grpc-protocol-{ADMIN_HEADER}') may use {", ".join(RESTRICTED[:3])},
                       {", ".join(RESTRICTED[3:])}; random if not set
  POLYHEAD_THREADS     threads of a model process (its share of the cores if not set)
  POLYHEAD_PRECISION   what the engine computes in (auto if not set)

exit codes: 0 stopped by a signal, 1 the first start failed or accepted requests were given up, 2 asked wrongly
"""


class AddressError(PolyheadError):
    """An address, a port or a key cannot be used."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; each option's default is its environment variable's value."""
    parser = argparse.ArgumentParser(
        prog="polyhead-serve",
        description="Serve a Triton model repository; ready when a real inference answers, restarted when none does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: object, about: str, **more: object) -> None:
        variable = "POLYHEAD_" + name.upper().replace("-", "_")
        about = f"{about} (default: {default}; env {variable})"
        value = os.environ.get(variable, default)
        parser.add_argument(f"--{name}", default=value, help=about, **more)  # type: ignore[arg-type] # all are its own

    add("repository", "model_repository", "the model repository", type=Path)
    add("address", "127.0.0.1", "address to listen on; no TLS here: put a proxy (deploy/nginx) before any but loopback")
    add("http-port", 8000, "HTTP port", type=int)
    add("grpc-port", 8001, "gRPC port", type=int)
    add("metrics-port", 8002, "Triton's Prometheus port", type=int)
    add("probe-port", 8003, "port of /live, /ready and the supervisor's /metrics", type=int)
    add("control", "none", "explicit: versions may be swapped while it serves, by polyhead-deploy; none: they may not")
    add("log-level", "warning", f"how much Triton logs: {', '.join(LOG_FLAGS)}")
    add("log-format", "text", "text, or json: one object a line, Triton's lines included")
    add("startup-timeout-s", 300.0, "how long a start may take", type=float)
    add("probe-interval-s", 2.0, "pause between an answered canary and the next", type=float)
    add("canary-timeout-s", 5.0, "how long a canary is waited for", type=float)
    add("canary-failures", 3, "how many canaries in a row must fail for a restart", type=int)
    add("drain-s", 1.0, "how long /ready says 503 before the server ends: for load balancers", type=float)
    add("exit-timeout-s", 30.0, "how long accepted requests may take at the end (10 of it in the queue)", type=float)
    parser.add_argument("--dry-run", action="store_true", help="print the shell commands to run it by hand")
    settings = parser.parse_args(argv)
    for name, allowed in (("log_level", tuple(LOG_FLAGS)), ("log_format", FORMATS), ("control", CONTROLS)):
        _check_choice(parser, settings, name, allowed)
    for name in ("startup_timeout_s", "probe_interval_s", "canary_timeout_s", "canary_failures", "exit_timeout_s"):
        if not getattr(settings, name) > 0:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, got {getattr(settings, name)}")
    if not settings.drain_s >= 0:
        parser.error(f"--drain-s: must be 0 or more, got {settings.drain_s}")
    return settings


def _check_choice(
    parser: argparse.ArgumentParser, settings: argparse.Namespace, name: str, allowed: Sequence[str]
) -> None:
    # Not argparse's choices, which let a default from the environment pass unchecked.
    value = getattr(settings, name)
    if value not in allowed:
        parser.error(f"--{name.replace('_', '-')}: must be one of {', '.join(allowed)}, got {value!r}")


def check_ports(settings: argparse.Namespace) -> None:
    """Raises AddressError if a port is out of range, given twice or not free; Triton says so much later."""
    taken: dict[int, str] = {}
    for option in PORTS:
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


def admin_key(control: str = "none") -> str:
    """The key to the restricted APIs; raises AddressError if Triton could not read it out of its flag."""
    key = os.environ.get("POLYHEAD_ADMIN_KEY")
    if not key and control == "explicit":
        raise AddressError("POLYHEAD_ADMIN_KEY: must be set for --control explicit, as polyhead-deploy sends it")
    key = key or secrets.token_urlsafe(24)
    if not re.fullmatch(r"[A-Za-z0-9._~-]{16,}", key):
        raise AddressError("POLYHEAD_ADMIN_KEY: must be 16 or more letters, digits and '.', '_', '~', '-'")
    return key
