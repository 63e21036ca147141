"""``polyhead-client explain``: tables, JSON, colours on a terminal only, and exit codes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from rich.console import Console
from typer.testing import CliRunner

from polyhead_client import console
from polyhead_client.command import app
from polyhead_client.testing import FakeServer

runner = CliRunner()
LONG = "Nothing is new here today. " * 40


def planted(text: str) -> dict[str, object]:
    score = 0.125 + 0.5 * ("goal" in text) - 0.0625 * ("rain" in text)
    return {"topic": {"sport": score, "news": 0.25}, "stars": 2.0}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server behind a port, and a terminal that is wide enough that no cell is folded."""
    monkeypatch.setenv("COLUMNS", "200")
    with FakeServer(planted, text_template="[[{Title}. ]]{Body}").serve() as address:
        yield address


def test_table(address: str) -> None:
    """A table has the strongest words with their effects in words, and no colours in a pipe."""
    result = runner.invoke(
        app, ["explain", "--server", address, "A goal, despite rain. \x1b[31m[bold]goal", "--words", "3"]
    )
    assert result.exit_code == 0, result.stderr
    topic = result.stdout.partition("mood")[0]
    lines = topic.splitlines()
    assert lines[0].strip() == "topic: sport 0.56"
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line] == [
        ["goal", "the score would be the same", "2 places: the score would be 0.5 lower"],
        ["goal", "the score would be the same", "2 places: the score would be 0.5 lower"],
        ["rain", "the score would be 0.062 higher", ""],
    ]
    assert "texts were scored." in result.stdout
    assert "\x1b" not in result.stdout


def test_json_of_one_head_from_stdin(address: str) -> None:
    """The whole of standard input is one text; --json has all words."""
    result = runner.invoke(app, ["explain", "--server", address, "--head", "topic", "--json"], input="a\r\ngoal\n")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["text"] == "a\r\ngoal"
    assert [(word["text"], word["effect"]) for word in found["reasons"][0]["words"]] == [("a", 0), ("goal", 0.5)]


def test_fields_and_long_texts(address: str) -> None:
    """Fields have a column; a long text has a table of its sentences and a note."""
    row = json.dumps({"Title": "A goal", "Body": LONG})
    result = runner.invoke(app, ["explain", "--server", address, "--head", "topic", row])
    assert result.exit_code == 0, result.stderr
    for words in ("Title │ goal", "Body  │ Nothing is new here today.", "sentence", "only the words of its strongest"):
        assert words in result.stdout


def test_colours_on_a_terminal(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows the text with its words in colours; escapes of the text do not reach it."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "Console", lambda: Console(file=screen, force_terminal=True, width=200))
    result = runner.invoke(app, ["explain", "--server", address, "--head", "topic", "a goal in rain \x1b[2J"])
    assert result.exit_code == 0, result.stderr
    assert "a \x1b[1;32mgoal\x1b[0m in \x1b[4;31mrain\x1b[0m" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


@pytest.mark.parametrize(
    ("arguments", "text", "code", "words"),
    [
        ([" "], None, 1, "the text is empty or blank"),
        ([], "", 1, "the text is empty or blank"),
        (["text", "--head", "tonic"], None, 2, "no head 'tonic'"),
        (["text", "--label", "tonic"], None, 2, "no head has label 'tonic'"),
        (["text", "--most-texts", "3"], None, 2, "most-texts"),
        (["one", "two"], None, 2, "unexpected extra argument"),
        ([], b"\xff", 2, "not UTF-8: it has byte 0xff"),
        (["text", "--server", "127.0.0.1:1", "--timeout-s", "1"], None, 2, "no connection to 127.0.0.1:1"),
    ],
)
def test_errors(address: str, arguments: list[str], text: str | bytes | None, code: int, words: str) -> None:
    """A text without an answer is exit code 1, wrong usage and a missing server 2; nothing is printed then."""
    environment = {"POLYHEAD_CLIENT_SERVER": address}
    result = runner.invoke(app, ["explain", *arguments], input=text, env=environment)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""
