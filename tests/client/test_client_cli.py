"""The command line: what it prints and its exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from polyhead_client import console
from polyhead_client.command import app
from polyhead_client.request import HttpReply, HttpRequest
from polyhead_client.testing import Failure
from tests.client.fake_triton import ANSWER, FakeTriton

runner = CliRunner()


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal wide enough that no cell is folded."""
    monkeypatch.setenv("COLUMNS", "200")


def test_table(fake: FakeTriton) -> None:
    """Texts as arguments give a table with one column per head, and exit code 0."""
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
    environment = {"POLYHEAD_CLIENT_SERVER": fake.url, "POLYHEAD_CLIENT_TOP_K": "2"}
    result = runner.invoke(app, ["classify", "--json"], input="a\r\nnaïve\n", env=environment)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"text": "a", **ANSWER},
        {"text": "naïve", **ANSWER},
    ]
    assert fake.requests[0]["parameters"] == {"top_k": 2}


def test_private_texts_are_marked(fake: FakeTriton) -> None:
    """With --private the server's answer log leaves the texts out."""
    for options in (["--private"], []):
        assert runner.invoke(app, ["classify", "--server", fake.url, *options, "a"]).exit_code == 0
    assert [asked["parameters"] for asked in fake.requests] == [{"private": True}, {}]


def test_text_error_is_exit_code_1(fake: FakeTriton) -> None:
    """The table shows a text without an answer among the others, and the exit code is 1."""
    result = runner.invoke(app, ["classify", "--server", fake.url], input="good\n\n")
    assert result.exit_code == 1
    assert "empty or blank" in result.stdout
    assert "sport" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "--server", "127.0.0.1:1", "--timeout-s", "1", "text"], "no connection to 127.0.0.1:1"),
        (["classify", "--server", "nonsense://", "text"], "host:port"),
        (["classify", "--timeout-s", "-1", "text"], "timeout_s"),
        (["classify", "--top-k", "0", "text"], "top-k"),
        (["classify", "--protocol", "soap", "text"], "protocol"),
        (["classify", "\udcff"], "lone surrogate"),
        (["classify"], "standard input is empty"),
        (["tell"], "No such command"),
        (["classify", "--header", "nameless", "text"], "NAME:VALUE"),
        (["classify", "--input", "in.csv"], "No such option"),
        (["classify", "--output", "out.csv"], "No such option"),
        (["ready", "--server", "127.0.0.1:1"], "not ready"),
        (["schema", "--server", "127.0.0.1:1", "--timeout-s", "1"], "no connection"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], words: str) -> None:
    """Bad usage and a missing server give exit code 2 and a message, on stderr only."""
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
    """A line that is not UTF-8 has an error in its place; the lines around it are answered."""
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


def test_bad_lines_have_their_reason_in_place(fake: FakeTriton) -> None:
    """Bad lines keep their place, also if there are many, and the lines after them are answered."""
    fake.answer = lambda text: {"heads": {}, "token_count": int(text), "truncated": False}
    texts = [str(number) if number % 40 == 0 else None for number in range(200)]
    lines = b"".join(b"\xff\n" if text is None else text.encode() + b"\n" for text in texts)
    for most in (10, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(console, "LINES_PER_STREAM", most)
            result = runner.invoke(app, ["classify", "--server", fake.url, "--json", "--batch-size", "2"], input=lines)
        assert result.exit_code == 1, result.stderr
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        assert [answer.get("token_count") for answer in answers] == [text and int(text) for text in texts]
        assert [answer["error"] for answer in answers if "error" in answer] == [
            f"line {number} is not UTF-8: it has byte 0xff"
            for number, text in enumerate(texts, start=1)
            if text is None
        ]


def test_a_rejected_batch_costs_only_the_bad_text(fake: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server rejects a batch, its lines are asked one by one, and only the bad ones have an error."""
    reply = fake.server.reply

    def reject(request: HttpRequest, failure: Failure) -> HttpReply:
        return HttpReply(413, {}, b'{"error": "too long"}') if b"bad" in request.body else reply(request, failure)

    monkeypatch.setattr(fake.server, "reply", reject)
    texts = [b"bad" if number in (17, 18, 63) else b"\xff" if number == 16 else b"%d" % number for number in range(64)]
    arguments = ["classify", "--server", fake.url, "--json", "--batch-size", "8"]
    fake.answer = lambda text: {"heads": {}, "token_count": 0 if text == "canary" else int(text), "truncated": False}
    result = runner.invoke(app, arguments, input=b"\n".join(texts))
    assert result.exit_code == 1, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["text"].encode() for answer in answers] == [text.replace(b"\xff", b"\\xff") for text in texts]
    assert [number for number, answer in enumerate(answers) if "error" in answer] == [16, 17, 18, 63]
    assert "too long" in answers[17]["error"]


def test_a_rejection_of_every_text_is_exit_code_2(fake: FakeTriton) -> None:
    """If the server rejects a harmless text too, such as without a key, the command ends with the reason."""
    fake.failure = (401, "who are you")
    result = runner.invoke(app, ["classify", "--server", fake.url, "--json"], input="a\nb\n")
    assert result.exit_code == 2
    assert "who are you" in result.stderr
    assert result.stdout == ""


def test_lines_longer_than_the_limit() -> None:
    """A line that is too long is read in pieces of the limit, and the next line is read too."""
    reads = []

    class File(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            reads.append(size)
            return super().readline(size)

    file = File(
        b"\xef\xbb\xbfshort\r\n" + b"x" * 50 + b"\n\nnext\n" + b"y" * 11 + b"\n" + b"z" * 10 + b"\r\n" + b"w" * 50
    )
    lines = list(console.read_lines(file, longest=10))
    assert [line.text for line in lines if line.error is None] == ["short", "", "next", "z" * 10]
    assert [line.error for line in lines if line.error] == [f"line {n} has more than 10 bytes" for n in (2, 5, 7)]
    assert set(reads) <= {10, 12}


def test_every_option_is_an_environment_variable() -> None:
    """All options of all commands have the prefix POLYHEAD_CLIENT_; only --help has no variable."""
    for name, command in get_command(app).commands.items():
        with get_command(app).make_context("polyhead-client", [name], resilient_parsing=True) as root:
            context = command.make_context(name, [], parent=root, resilient_parsing=True)
        assert context.auto_envvar_prefix == "POLYHEAD_CLIENT"
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                assert option.allow_from_autoenv, option.opts
                assert option.envvar is None, option.opts
                # The library makes the variable from the parameter's name.
                assert option.name == option.opts[0].removeprefix("--").replace("-", "_"), option.opts


@pytest.mark.parametrize("name", ["POLYHEAD_SERVER", "POLYHEAD_TOP_K", "POLYHEAD_CLIENT_CLASSIFY_TOP_K"])
def test_other_variables_are_not_read(fake: FakeTriton, name: str) -> None:
    """A variable of another command, or without the whole prefix, means nothing here."""
    result = runner.invoke(app, ["classify", "--server", fake.url, "text"], env={name: "nonsense://"})
    assert result.exit_code == 0, result.stderr


def test_options_come_from_variables(fake: FakeTriton) -> None:
    """Flags, lists and numbers are read from variables, and the command line comes before them."""
    environment = {
        "POLYHEAD_CLIENT_SERVER": f"{fake.url} {fake.url.replace('127.0.0.1', 'localhost')}",
        "POLYHEAD_CLIENT_JSON": "1",
        "POLYHEAD_CLIENT_API_KEY": "secret",
        "POLYHEAD_CLIENT_HEADER": "x-team:search",
        "POLYHEAD_CLIENT_MODEL": "other",
        "POLYHEAD_CLIENT_TOP_K": "2",
    }
    result = runner.invoke(app, ["classify", "text", "--top-k", "1"], env=environment)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["heads"] == ANSWER["heads"]
    (asked,) = fake.server.requests
    assert (asked.headers["authorization"], asked.headers["x-team"]) == ("Bearer secret", "search")
    assert (asked.model, asked.parameters) == ("other", {"top_k": 1})


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"]])
def test_help_says_where_files_are_scored(arguments: list[str]) -> None:
    """The help names the command that scores whole files with a running server."""
    assert "polyhead-score --server" in runner.invoke(app, arguments).stdout


def test_schema_shows_heads(fake: FakeTriton) -> None:
    """The schema comes as a table, or whole as JSON."""
    result = runner.invoke(app, ["schema", "--server", fake.url])
    assert result.exit_code == 0, result.stderr
    for words in ("topic", "single_label", "happy from 0.50, sad from 0.40", "a number", "16 tokens"):
        assert words in result.stdout
    result = runner.invoke(app, ["schema", "--server", fake.url, "--json"])
    assert json.loads(result.stdout)["heads"][0]["labels"] == ["news", "sport", "science"]


def test_ready_says_so_by_exit_code(fake: FakeTriton) -> None:
    """The exit code is 0 if the canary is answered, otherwise 2 with a reason, at once or after the wait."""
    assert runner.invoke(app, ["ready", "--server", fake.url]).stdout == "ready\n"
    fake.failure = (500, "stub process is not healthy")
    result = runner.invoke(app, ["ready", "--server", fake.url])
    assert result.exit_code == 2
    assert "not ready" in result.stderr
    result = runner.invoke(app, ["ready", "--server", fake.url, "--wait-s", "0.3"])
    assert result.exit_code == 2
    assert "stub process is not healthy" in result.stderr


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
    """A shell gets a script, and the script completes commands and options."""
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
            "COMP_WORDS": "polyhead-client classify --time",
            "COMP_CWORD": "2",
        }
        offered = subprocess.run(command, env=environment | asked, capture_output=True, text=True, check=False)
        assert "--timeout-s" in offered.stdout.split()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra(missing: str) -> None:
    """Without the extra the command says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from polyhead_client.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "pip install './client[cli]'" in result.stderr


def test_a_closed_pipe_is_quiet(fake: FakeTriton) -> None:
    """`… --json | head` prints no traceback."""
    command = f"yes a | head -n 500 | {sys.executable} -m polyhead_client.cli classify --json --server {fake.url}"
    run = subprocess.run(["bash", "-c", f"{command} | head -n 1"], capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 1
    assert run.stderr == ""


def test_ctrl_c(fake: FakeTriton) -> None:
    """Ctrl-C ends the command with exit code 130 and one line."""
    fake.delay_s = 0.05
    command = [sys.executable, "-m", "polyhead_client.cli", "classify", "--server", fake.url, "--batch-size", "8"]
    # A parent that ignores SIGINT, such as `nohup … &`, would hand that on to the child.
    default = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, default)
    assert process.stdin is not None
    process.stdin.write("a\n" * 3000)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while len(fake.requests) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said == "polyhead-client: stopped\n"
