"""The nginx of deploy/nginx in front of a server, as a process that tests start and end."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest

from loadtest.local_proxy import LocalProxy, LocalProxyError
from tests.e2e.processes import descendants

KEY = "a.key-of~the_tests"
OTHER_KEY = "another.key-of~the_tests"


class Proxied(LocalProxy):
    """nginx with its own certificate and the keys of two callers.

    Args:
        settings: variables of deploy/nginx/render.

    Attributes:
        certificate: the certificate that clients must trust.
    """

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="polyhead-proxy-"))
        self.certificate = self.folder / "certificate.pem"
        self._make_certificate()
        try:
            pair = self.certificate, self.folder / "key.pem"
            super().__init__(self.folder, f"# comment\n\ntests {KEY}\nother {OTHER_KEY}\n", pair, **settings)
        except LocalProxyError as error:
            pytest.fail(str(error), pytrace=False)

    def _make_certificate(self) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        more = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(self.folder / "key.pem")]
        subprocess.run([*command.split(), *more, "-out", str(self.certificate)], capture_output=True, check=True)

    def __exit__(self, *_: object) -> None:
        """Ends it, and removes its files."""
        super().__exit__()
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
