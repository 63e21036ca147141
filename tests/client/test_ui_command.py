"""``polyhead-client ui`` before the page is there: options, the missing extra, and what is not imported."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead_client.command import app
from polyhead_client.ui import start as start_module
from polyhead_client.ui.asking import Side, side_titles

runner = CliRunner()
Started = list[dict[str, Any]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What the command would serve, instead of serving it."""
    found: Started = []

    def start(
        sides: Sequence[Side], examples: Sequence[Any], host: str, port: int, ready: Callable[[str], None]
    ) -> None:
        found.append({"sides": list(sides), "examples": examples, "host": host, "port": port})
        ready(f"http://{host}:{port}/")

    monkeypatch.setattr(start_module, "start", start)
    return found


def headers(side: Side) -> dict[str, str]:
    """What a side sends with each request."""
    return {name.lower(): value for name, value in side.client._headers.items()}


def test_one_model(started: Started, tmp_path: Path) -> None:
    """The page is on loopback by default; golden rows become examples."""
    (tmp_path / "golden.jsonl").write_text('{"text": "a goal"}\n')
    result = runner.invoke(app, ["ui", "--server", "a:1", "--model", "m", "--golden", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    (said,) = started
    assert [side.title for side in said["sides"]] == ["m, newest version, at a:1"]
    assert (said["examples"], said["host"], said["port"]) == (["a goal"], "127.0.0.1", 7860)
    assert result.stdout == "Open http://127.0.0.1:7860/ in a browser. Ctrl-C ends the page.\n"
    assert result.stderr == ""


def test_two_versions_share_server_and_key(started: Started) -> None:
    """A second version of the same model is asked with the same key, and is called by its version."""
    result = runner.invoke(
        app, ["ui", "--server", "a:1", "--model-version", "2", "--compare-version", "1", "--api-key", "secret"]
    )
    assert result.exit_code == 0, result.stderr
    sides = started[0]["sides"]
    assert [side.title for side in sides] == ["version 2", "version 1"]
    assert [headers(side)["authorization"] for side in sides] == ["Bearer secret"] * 2


def test_another_server_never_gets_the_key(started: Started) -> None:
    """Key and headers of the first server stay with it; the second has its own key, or none."""
    options = ["ui", "--server", "a:1", "--api-key", "secret", "--header", "x-team: search", "--compare-server", "b:2"]
    for more, key in (([], None), (["--compare-api-key", "other"], "Bearer other")):
        assert runner.invoke(app, [*options, *more]).exit_code == 0
        first, second = started[-1]["sides"]
        assert headers(first)["authorization"] == "Bearer secret"
        assert headers(second).get("authorization") == key
        assert "x-team" not in headers(second)
        assert [first.title, second.title] == ["a:1", "b:2"]


def test_titles() -> None:
    """Two sides are called by what differs between them; two equal ones are numbered."""
    one, other = (["a:1"], "m", ""), (["a:1", "b:1"], "n", "3")
    assert side_titles([one]) == ["m, newest version, at a:1"]
    assert side_titles([one, other]) == ["a:1, m, newest version", "a:1, b:1, n, version 3"]
    assert side_titles([one, one]) == ["1: a:1, m, newest version", "2: a:1, m, newest version"]


def test_an_open_page_is_said_to_be_open(started: Started) -> None:
    """With another host than loopback, the command says who can ask."""
    result = runner.invoke(app, ["ui", "--host", "0.0.0.0"])
    assert "Whoever reaches this address can ask the model" in result.stderr


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.1.2.3", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, is_local: bool) -> None:
    """Loopback addresses and their usual name, nothing else."""
    assert start_module.is_loopback(host) == is_local


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "polyhead_client.ui.application", raising=False)
    monkeypatch.setattr("os.environ", {})
    result = runner.invoke(app, ["ui", "--port", "0"])
    assert result.exit_code == 2
    assert result.stderr == ("polyhead-client: gradio is missing; in the project folder: pip install './client[ui]'\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--golden", "/nothing.jsonl"], "golden: /nothing.jsonl cannot be read (No such file or directory)"),
        (["--compare-server", "b:port"], "b:port"),
        (["--port", "70000"], "port"),
    ],
)
def test_wrong_options(options: list[str], words: str) -> None:
    """The command ends with exit code 2 and says what is wrong."""
    result = runner.invoke(app, ["ui", *options])
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_port_that_is_taken_is_one_sentence() -> None:
    """It is said before Gradio is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runner.invoke(app, ["ui", "--port", str(port)])
    assert result.exit_code == 2
    why = f"cannot listen at 127.0.0.1:{port} (Address already in use); choose another --host or --port"
    assert result.stderr == f"polyhead-client: {why}\n"


def test_other_commands_do_not_load_gradio() -> None:
    """The help of the command stays fast."""
    code = (
        "import sys; from typer.testing import CliRunner; from polyhead_client.command import app;"
        "CliRunner().invoke(app, ['ui', '--help']); import polyhead_client.ui.table, polyhead_client.ui.cards;"
        "sys.exit(bool({'gradio', 'fastapi', 'pandas', 'uvicorn'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
