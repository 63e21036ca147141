"""A local server's process, with a stand-in for polyhead-serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import local_server
from loadtest.local_server import LocalServer, LocalServerError, free_ports


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell script that runs where polyhead-serve would."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(local_server, "VENV", folder)


def test_starts_and_ends_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gets repository, ports and environment; it is ready when it says so, and SIGTERM ends it."""
    stand_in(
        tmp_path, 'trap "exit 7" TERM; echo "$MARK $*"; echo "ready http=1"; while :; do sleep 0.05; done', monkeypatch
    )
    ports = free_ports()
    with LocalServer(tmp_path, "--log-format", "json", environment={"MARK": "here"}, ports=ports) as server:
        assert server.times_ready() == 1
        assert server.url("http") == f"127.0.0.1:{ports['http']}"
        said = server.lines[0]
    assert server.process.returncode == 7
    assert said.startswith(f"here -m polyhead_serving.serve --repository {tmp_path} --http-port {ports['http']} ")
    assert said.endswith(" --log-format json\n")


def test_a_server_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the exit code and what the server printed last."""
    stand_in(tmp_path, "echo no such model; exit 3", monkeypatch)
    with pytest.raises(LocalServerError, match=r"ended with 3:\nno such model"), LocalServer(tmp_path):
        pass


def test_a_server_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is an error; one that ignores SIGTERM is killed."""
    stand_in(tmp_path, 'trap "" TERM; echo still here; while :; do sleep 0.05; done', monkeypatch)
    monkeypatch.setattr(local_server, "READY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(local_server, "END_TIMEOUT_S", 0.3)
    server = LocalServer(tmp_path)
    with pytest.raises(LocalServerError, match=r"not ready in 0\.3 s:\nstill here"):
        server.wait_until_ready()
    with pytest.raises(LocalServerError, match=r"did not end in 0\.3 s after SIGTERM"):
        server.__exit__()
    assert server.process.returncode == -9


def test_a_missing_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which environment is missing and how to make it."""
    monkeypatch.setattr(local_server, "VENV", tmp_path / "none")
    with pytest.raises(LocalServerError, match=r"none: the server's environment is missing; run `make setup`"):
        LocalServer(tmp_path)
