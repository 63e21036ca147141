"""The reverse proxy of deploy/nginx in front of a server, without TLS, which the sender of a load would pay for too."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.local_server import ROOT, LocalServer

NGINX = ROOT / ".nginx" / "usr" / "sbin" / "nginx"
KEY = "a.key-of~the_benchmark"
START_S = 20.0
# One key sends everything, so only the bound for all callers together may act.
NO_LIMIT = {"RATE": "1000000r/s", "BURST": "1000000", "CONNECTIONS": "65535"}


@contextmanager
def proxied(server: LocalServer, scratch: Path) -> Iterator[int]:
    """Runs nginx in front of the server; yields its HTTP port on loopback, which asks for `KEY`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys, config = scratch / "keys", scratch / "nginx.conf"
    keys.write_text(f"benchmark {KEY}\n", encoding="utf-8")
    keys.chmod(0o600)
    places = {"INFERENCE": server.url("http"), "METRICS": server.url("metrics"), "PROBE": server.url("probe")}
    files = {"KEYS_FILE": keys, "CERTIFICATE": "/unused", "CERTIFICATE_KEY": "/unused", "RUN": scratch / "nginx"}
    variables = {
        "LISTEN": f"127.0.0.1:{port}", "MODULES": str(NGINX.parents[1] / "lib" / "nginx" / "modules"),
        "ACCESS_LOG": "/dev/null", **places, **NO_LIMIT, **{name: str(value) for name, value in files.items()},
    }  # fmt: skip
    render = ROOT / "deploy" / "nginx" / "render"
    text = subprocess.run([str(render)], env=os.environ | variables, capture_output=True, check=True, encoding="utf-8")
    lines = text.stdout.replace(" ssl;", ";").splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("  ssl_certificate")), encoding="utf-8")
    # Root's nginx runs its workers as another user, who may not be allowed into the temporary folder.
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    process = subprocess.Popen([str(NGINX), "-e", "stderr", "-c", str(config), "-g", directives])
    try:
        _wait(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(START_S)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("nginx did not start") from None
            time.sleep(0.02)
