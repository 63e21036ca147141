"""The nginx of deploy/nginx in front of a server, as a process that tests start and end."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from loadtest.local_server import ROOT
from tests.e2e.processes import descendants

NGINX = ROOT / ".nginx" / "usr" / "sbin" / "nginx"
MODULES = NGINX.parents[1] / "lib" / "nginx" / "modules"
# Root's nginx runs its workers as another user, who may not be allowed into the temporary folder.
DIRECTIVES = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
KEY = "a.key-of~the_tests"


class Proxied:
    """nginx with its own certificate and one key.

    Args:
        settings: variables of deploy/nginx/render.

    Attributes:
        port: HTTPS port on loopback.
        certificate: the certificate that clients must trust.
    """

    def __init__(self, **settings: str) -> None:
        if not NGINX.exists():
            pytest.fail(f"{NGINX}: is missing; run `make test`, which brings it", pytrace=False)
        self.folder = Path(tempfile.mkdtemp(prefix="polyhead-proxy-"))
        self.certificate = self.folder / "certificate.pem"
        self._make_certificate()
        (self.folder / "keys").write_text(f"# comment\n\ntests {KEY}\n", encoding="utf-8")
        (self.folder / "keys").chmod(0o600)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        variables = {
            "CERTIFICATE": str(self.certificate),
            "CERTIFICATE_KEY": str(self.folder / "key.pem"),
            "KEYS_FILE": str(self.folder / "keys"),
            "RUN": str(self.folder / "run"),
            "LISTEN": f"127.0.0.1:{self.port}",
            "MODULES": str(MODULES),
            "ACCESS_LOG": str(self.folder / "access.log"),
            **settings,
        }
        render = ROOT / "deploy" / "nginx" / "render"
        command = [str(render), str(self.folder / "nginx.conf")]
        subprocess.run(command, env={**os.environ, **variables}, check=True)
        command = [str(NGINX), "-e", "stderr", "-c", str(self.folder / "nginx.conf"), "-g", DIRECTIVES]
        self.errors = (self.folder / "errors").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(command, stderr=self.errors)

    def _make_certificate(self) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        more = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(self.folder / "key.pem")]
        subprocess.run([*command.split(), *more, "-out", str(self.certificate)], capture_output=True, check=True)

    def __enter__(self) -> Proxied:
        """Itself, once it listens."""
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            assert self.process.poll() is None, (self.folder / "errors").read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(20)
        self.errors.close()
        shutil.rmtree(self.folder)

    @property
    def resident(self) -> int:
        """The bytes of memory that its workers use."""
        statm = [Path(f"/proc/{worker}/statm").read_text().split() for worker in descendants(self.process.pid)]
        return sum(int(pages) for _, pages, *_ in statm) * os.sysconf("SC_PAGE_SIZE")

    @property
    def trust(self) -> ssl.SSLContext:
        """Trusts the certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def connect(self) -> http.client.HTTPSConnection:
        """A connection over TLS."""
        return http.client.HTTPSConnection("localhost", self.port, context=self.trust, timeout=30)

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        method: str | None = None,
        key: str | None = KEY,
        **headers: str,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one request; underscores in header names become hyphens."""
        connection = self.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()
