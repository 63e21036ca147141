"""The command line: what it prints and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from polyhead_client.command import app
from tests.client.fake_triton import ANSWER, FakeTriton

runner = CliRunner()


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal wide enough that no cell is folded."""
    monkeypatch.setenv("COLUMNS", "200")


def test_table(fake: FakeTriton) -> None:
    """Texts given as arguments come back as a table with a column a head, and exit code 0."""
    result = runner.invoke(app, ["classify", "--url", fake.url, "a goal", "[bold]an \x1b[31mescape"])
    assert result.exit_code == 0, result.stderr
    for word in (
        "topic",
        "mood",
        "stars",
        "a goal",
        "sport 0.70",
        "happy 0.90",
        "3.25",
        "[bold]an �[31mescape",
    ):
        assert word in result.stdout
    assert "\x1b" not in result.stdout


def test_json_from_stdin(fake: FakeTriton) -> None:
    """Lines of stdin give one JSON object each; the server and options may come from the environment."""
    environment = {"POLYHEAD_URL": fake.url, "POLYHEAD_TOP_K": "2"}
    result = runner.invoke(app, ["classify", "--json"], input="a\r\nnaïve\n", env=environment)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"text": "a", **ANSWER},
        {"text": "naïve", **ANSWER},
    ]
    assert fake.requests[0]["parameters"] == {"top_k": 2}


def test_text_error_is_exit_code_1(fake: FakeTriton) -> None:
    """A text without an answer is visible in the table, beside its neighbours, and gives exit code 1."""
    result = runner.invoke(app, ["classify", "--url", fake.url], input="good\n\n")
    assert result.exit_code == 1
    assert "empty or blank" in result.stdout
    assert "sport" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "--url", "127.0.0.1:1", "text"], "no connection to 127.0.0.1:1"),
        (["classify", "--url", "nonsense://", "text"], "url must be"),
        (["classify", "--timeout-s", "-1", "text"], "timeout_s"),
        (["classify", "--top-k", "0", "text"], "top-k"),
        (["classify", "--protocol", "soap", "text"], "protocol"),
        (["classify", "\udcff"], "lone surrogate"),
        (["classify"], "standard input is empty"),
        (["tell"], "No such command"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], words: str) -> None:
    """Bad usage and a missing server give exit code 2 and say why on stderr alone."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_server_error_is_one_line(fake: FakeTriton) -> None:
    """A failing server gives exit code 2 and a single line."""
    fake.failure = (500, "line one\nline two")
    result = runner.invoke(app, ["classify", "--url", fake.url, "text"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "line one line two" in result.stderr


def test_stdin_that_is_not_utf8(fake: FakeTriton) -> None:
    """Bytes that are not UTF-8 are refused with their line."""
    result = runner.invoke(app, ["classify", "--url", fake.url], input=b"good\n\xff\n")
    assert result.exit_code == 2
    assert "line 2 has byte 0xff" in result.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra(missing: str) -> None:
    """Without the extra the command says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from polyhead_client.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "pip install 'polyhead-client[cli]'" in result.stderr
