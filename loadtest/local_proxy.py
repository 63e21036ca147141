"""The nginx of deploy/nginx on loopback, run as a child process: for benchmarks and tests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from loadtest.local_server import ROOT

NGINX = ROOT / ".nginx" / "usr" / "sbin" / "nginx"
MODULES = NGINX.parents[1] / "lib" / "nginx" / "modules"
RENDER = ROOT / "deploy" / "nginx" / "render"
# Root's nginx runs its workers as another user, who may not be allowed into the temporary folder.
DIRECTIVES = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
WAIT_S = 20.0


class LocalProxyError(Exception):
    """nginx cannot be started; the message contains what it said."""


class LocalProxy:
    """nginx. As a context manager it waits until nginx listens, and ends it.

    Args:
        folder: an existing folder for its files.
        keys: the content of its key file: a line "name key" per caller.
        certificate: PEM files of the certificate and its key. None: it speaks HTTP instead of HTTPS.
        settings: variables of deploy/nginx/render.

    Attributes:
        port: on loopback.

    Raises:
        LocalProxyError: nginx is missing.
    """

    def __init__(self, folder: Path, keys: str, certificate: tuple[Path, Path] | None, **settings: str) -> None:
        if not NGINX.exists():
            raise LocalProxyError(f"{NGINX}: is missing; run `make test`, which brings it")
        key_file, config = folder / "keys", folder / "nginx.conf"
        key_file.write_text(keys, encoding="utf-8")
        key_file.chmod(0o600)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        public, private = certificate or (Path("/unused"), Path("/unused"))
        variables = {
            "CERTIFICATE": str(public), "CERTIFICATE_KEY": str(private), "KEYS_FILE": str(key_file),
            "RUN": str(folder / "run"), "LISTEN": f"127.0.0.1:{self.port}", "MODULES": str(MODULES),
            "ACCESS_LOG": str(folder / "access.log"), **settings,
        }  # fmt: skip
        subprocess.run([str(RENDER), str(config)], env=os.environ | variables, check=True)
        if certificate is None:
            lines = config.read_text(encoding="utf-8").replace(" ssl;", ";").splitlines()
            kept = (line for line in lines if not line.strip().startswith("ssl_certificate"))
            config.write_text("\n".join(kept), encoding="utf-8")
        self.errors = (folder / "errors").open("w+", encoding="utf-8")
        command = [str(NGINX), "-e", "stderr", "-c", str(config), "-g", DIRECTIVES]
        self.process = subprocess.Popen(command, stderr=self.errors)

    def __enter__(self) -> Self:
        """Itself, once it listens."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    said = Path(self.errors.name).read_text(encoding="utf-8")
                    self.__exit__()
                    raise LocalProxyError(f"nginx does not listen: {said}") from None
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(WAIT_S)
        self.errors.close()
