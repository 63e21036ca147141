"""The command line with a real tritonserver, over both protocols."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from loadtest.local_server import LocalServer
from polyhead.predictor import Predictor
from polyhead_client import HeadKind
from tests.tiny import TEXTS


def run(*arguments: str, input: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs polyhead-client."""
    command = [sys.executable, "-m", "polyhead_client.cli", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, input=input, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_lines_have_the_predictors_answers(protocol: str, served: LocalServer, predictor: Predictor) -> None:
    """Every line of standard input has the predictor's answer; a blank line has the server's reason as its error."""
    lines = [" ".join(text.splitlines()) for text in TEXTS]
    texts = [*lines, " ", *lines]
    done = run(
        "classify", "--json", "--batch-size", "4",
        input="".join(f"{text}\n" for text in texts),
        POLYHEAD_CLIENT_SERVER=served.url(protocol),
        POLYHEAD_CLIENT_PROTOCOL=protocol,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts
    blank = rows.pop(len(lines))
    assert "empty or blank" in blank["error"]
    for row, answer in zip(rows, predictor.predict([row["text"] for row in rows]), strict=True):
        assert (row["token_count"], row["truncated"]) == (answer["token_count"], answer["truncated"])
        for name, head in answer["heads"].items():
            said = row["heads"][name]
            assert said["kind"] == head["kind"]
            assert said.get("labels") == head.get("labels")
            for scores in ("scores", "value"):
                if scores in head:
                    assert said[scores] == pytest.approx(head[scores], abs=1e-5)


def test_schema_and_ready(served: LocalServer) -> None:
    """The schema is the checkpoint's, and a server that answers is ready."""
    assert run("ready", "--server", served.url("http")).returncode == 0
    heads = json.loads(run("schema", "--json", "--server", served.url("http")).stdout)["heads"]
    assert {head["kind"] for head in heads} == set(HeadKind)
