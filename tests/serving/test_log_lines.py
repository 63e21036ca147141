"""Log lines as JSON: the supervisor's and tritonserver's alike."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from polyhead_serving.log_lines import JsonFormatter, pass_on


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "E1126 02:11:13.123456 99 model_lifecycle.cc:642] \"failed to load 'm': a\\nb\"\n",
            {"level": "error", "where": "model_lifecycle.cc:642", "message": "failed to load 'm': a\nb"},
        ),
        ("W1126 02:11:13.1 99 pb_stub.cc:1] plain words\n", {"level": "warning", "message": "plain words"}),
        ("| Model | Version |\n", {"level": "info", "message": "| Model | Version |"}),
        ('I1126 02:11:13.1 99 a.cc:1] "broken \\q"\n', {"level": "info", "message": '"broken \\q"'}),
    ],
)
def test_tritons_lines_become_objects(line: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Level, place and message are the line's; a line in another format is a message, unchanged."""
    pass_on(line, "json")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["source"] == "triton"
    assert found["time"].endswith("+00:00")
    assert expected.items() <= found.items()


def test_blank_lines_are_left_out_and_text_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """No empty object for an empty line; in text format every line passes unchanged."""
    pass_on("\n", "json")
    assert capsys.readouterr().err == ""
    pass_on("E1126 as it is\n", "text")
    assert capsys.readouterr().err == "E1126 as it is\n"


def test_a_record_is_one_line() -> None:
    """Message and traceback are on one line, whatever they contain."""
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "got %s", ("x\ny",), sys.exc_info())
    (line,) = JsonFormatter().format(record).splitlines()
    found = json.loads(line)
    assert (found["level"], found["source"], found["message"]) == ("error", "polyhead-serve", "got x\ny")
    assert found["traceback"].endswith("ValueError: a\nb")


def test_errors_of_usage_are_json_too(tmp_path: object) -> None:
    """An error that ends the command before anything starts is a JSON object too."""
    command = [
        sys.executable,
        "-m",
        "polyhead_serving.serve",
        "--log-format",
        "json",
        "--repository",
        f"{tmp_path}/none",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such folder" in json.loads(done.stderr)["message"]
