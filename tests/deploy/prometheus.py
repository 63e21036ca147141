"""Debian's Prometheus for tests: its tools, and a server with targets on loopback."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.local_server import free_ports

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "polyhead.rules.yml"
TOOLS = ROOT / ".operations" / "usr" / "bin"
START_TIMEOUT_S = 30


def tool(name: str) -> Path:
    """A program of Debian's package; if it is missing, the test fails and is never skipped."""
    if not (TOOLS / name).exists():
        pytest.fail(f"{TOOLS / name}: missing; run `make test`, which fetches it", pytrace=False)
    return TOOLS / name


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool; gives its output."""
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=180, check=False)


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules of a kind: ``alert`` or ``record``."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


class Prometheus:
    """A Prometheus over a configuration, on a free port of loopback, with its data in the folder."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_ports()['http']}"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._log = folder / "log"
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": self.url.removeprefix("http://"),
        }
        self._command = [tool("prometheus"), *(f"--{name}={value}" for name, value in options.items())]
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Prometheus:
        """Itself, once it answers."""
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with self._opener.open(f"{self.url}/-/ready", timeout=5):
                    return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    pytest.fail(f"Prometheus did not start:\n{self._log.read_text()}")
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        """Ends it in any case."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def api(self, path: str, **parameters: str) -> Any:
        """``data`` of an answer; if Prometheus refuses the expression, the test fails with its message."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with self._opener.open(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                pytest.fail(f"{parameters}: {error.read().decode()}")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        return list(self.api("query", query=expression)["result"])
