"""The command line: what it prints and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.main import get_command
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
    result = runner.invoke(app, ["classify", "--server", fake.url, "a goal", "[bold]an \x1b[31mescape"])
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
    environment = {"POLYHEAD_SERVER": fake.url, "POLYHEAD_TOP_K": "2"}
    result = runner.invoke(app, ["classify", "--json"], input="a\r\nnaïve\n", env=environment)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"text": "a", **ANSWER},
        {"text": "naïve", **ANSWER},
    ]
    assert fake.requests[0]["parameters"] == {"top_k": 2}


def test_text_error_is_exit_code_1(fake: FakeTriton) -> None:
    """A text without an answer is visible in the table, beside its neighbours, and gives exit code 1."""
    result = runner.invoke(app, ["classify", "--server", fake.url], input="good\n\n")
    assert result.exit_code == 1
    assert "empty or blank" in result.stdout
    assert "sport" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "--server", "127.0.0.1:1", "text"], "no connection to 127.0.0.1:1"),
        (["classify", "--server", "nonsense://", "text"], "host:port"),
        (["classify", "--timeout-s", "-1", "text"], "timeout_s"),
        (["classify", "--top-k", "0", "text"], "top-k"),
        (["classify", "--protocol", "soap", "text"], "protocol"),
        (["classify", "\udcff"], "lone surrogate"),
        (["classify"], "standard input is empty"),
        (["tell"], "No such command"),
        (["classify", "--header", "nameless", "text"], "NAME:VALUE"),
        (["classify", "--output", "out.csv"], "--output needs --input"),
        (["classify", "--input", "in.csv"], "--input needs --output"),
        (["classify", "--input", "in.csv", "--output", "out.csv", "text"], "one at a time"),
        (["ready", "--server", "127.0.0.1:1"], "not ready"),
        (["schema", "--server", "127.0.0.1:1"], "no connection"),
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
    result = runner.invoke(app, ["classify", "--server", fake.url, "text"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "line one line two" in result.stderr


def test_stdin_that_is_not_utf8(fake: FakeTriton) -> None:
    """A line that is not UTF-8 has an error in its place; its neighbours are answered."""
    result = runner.invoke(app, ["classify", "--server", fake.url, "--json"], input=b"good\n\xff\nfine\n")
    assert result.exit_code == 1
    first, second, third = (json.loads(line) for line in result.stdout.splitlines())
    assert first["heads"] == third["heads"] == ANSWER["heads"]
    assert second == {"text": "\\xff", "error": "line 2 is not UTF-8: it has byte 0xff"}


def test_stdin_is_streamed(fake: FakeTriton) -> None:
    """Standard input goes out in batches of the given size, answered in the order of its lines."""
    fake.answer = lambda text: {"heads": {}, "token_count": int(text), "truncated": False}
    lines = "".join(f"{number}\n" for number in range(50))
    result = runner.invoke(app, ["classify", "--server", fake.url, "--json", "--batch-size", "8"], input=lines)
    assert [json.loads(line)["token_count"] for line in result.stdout.splitlines()] == list(range(50))
    assert sorted(len(request["texts"]) for request in fake.requests) == [2, 8, 8, 8, 8, 8, 8]


def test_every_option_is_an_environment_variable() -> None:
    """All options of all commands follow one rule; only typer's own for help and completion have none."""
    commands = get_command(app).commands
    assert set(commands) == {"classify", "schema", "ready", "stats"}
    for command in commands.values():
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                name = option.opts[0].removeprefix("--").upper().replace("-", "_")
                assert option.envvar == f"POLYHEAD_{name}", option.opts


def test_schema_shows_heads(fake: FakeTriton) -> None:
    """The schema comes as a table, or whole as JSON."""
    result = runner.invoke(app, ["schema", "--server", fake.url])
    assert result.exit_code == 0, result.stderr
    for words in ("topic", "single_label", "happy from 0.50, sad from 0.40", "a number", "16 tokens"):
        assert words in result.stdout
    result = runner.invoke(app, ["schema", "--server", fake.url, "--json"])
    assert json.loads(result.stdout)["heads"][0]["labels"] == ["news", "sport", "science"]


def test_ready_says_so_by_exit_code(fake: FakeTriton) -> None:
    """0 once the canary is answered; 2 with a sentence where it is not, at once or after the wait."""
    assert runner.invoke(app, ["ready", "--server", fake.url]).stdout == "ready\n"
    fake.failure = (500, "stub process is not healthy")
    result = runner.invoke(app, ["ready", "--server", fake.url])
    assert result.exit_code == 2
    assert "not ready" in result.stderr
    result = runner.invoke(app, ["ready", "--server", fake.url, "--wait-s", "0.3"])
    assert result.exit_code == 2
    assert "stub process is not healthy" in result.stderr


def test_stats_of_each_replica(fake: FakeTriton) -> None:
    """Counts come as a table or as JSON, one row a replica."""
    runner.invoke(app, ["classify", "--server", fake.url, "text"])
    both = ["stats", "--server", fake.url, "--server", fake.url.replace("127.0.0.1", "localhost")]
    assert fake.url in runner.invoke(app, both).stdout
    counted = json.loads(runner.invoke(app, [*both, "--json"]).stdout)
    assert [one["inferences"] for one in counted] == [1, 1]


def test_connection_options_reach_the_server(fake: FakeTriton) -> None:
    """Key, headers and model version are sent."""
    options = ["--api-key", "secret", "--header", "x-team: search", "--model-version", "3", "--model", "other"]
    result = runner.invoke(app, ["classify", "--server", fake.url, *options, "text"])
    assert result.exit_code == 0, result.stderr
    (asked,) = fake.server.requests
    assert (asked.model, asked.version, asked.headers["x-team"]) == ("other", "3", "search")
    assert asked.headers["authorization"] == "Bearer secret"
    assert "polyhead-client-cli" in asked.headers["user-agent"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """A shell gets a script, and with it the commands and options that begin so."""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'polyhead-client'; from polyhead_client.cli import main; main()",
    ]
    shown = subprocess.run(
        [*command, "--show-completion", shell], env=environment, capture_output=True, text=True, check=True
    )
    assert "_POLYHEAD_CLIENT_COMPLETE=complete_" + shell in shown.stdout
    if shell == "bash":
        asked = {
            "_POLYHEAD_CLIENT_COMPLETE": "complete_bash",
            "COMP_WORDS": "polyhead-client classify --text",
            "COMP_CWORD": "2",
        }
        offered = subprocess.run(command, env=environment | asked, capture_output=True, text=True, check=False)
        assert "--text-column" in offered.stdout.split()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra(missing: str) -> None:
    """Without the extra the command says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from polyhead_client.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "pip install 'polyhead-client[cli]'" in result.stderr
