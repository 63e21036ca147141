"""The command line against a real tritonserver, over both protocols."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from polyhead.predictor import Predictor
from tests.tiny import TEXTS


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs polyhead-client."""
    command = [sys.executable, "-m", "polyhead_client.cli", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_file_has_the_predictors_answers(
    protocol: str, served: LocalServer, predictor: Predictor, tmp_path: Path
) -> None:
    """Every row of a file has what the predictor says of its text; the blank one is aside, with the server's reason."""
    texts = [*TEXTS, " ", *TEXTS]
    lines = "".join(json.dumps({"id": place, "text": text}) + "\n" for place, text in enumerate(texts))
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--batch-size", "4"]
    done = run("classify", *files, POLYHEAD_SERVER=served.url(protocol), POLYHEAD_PROTOCOL=protocol)
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [place for place, text in enumerate(texts) if text != " "]
    for row, answer in zip(rows, predictor.predict([row["text"] for row in rows]), strict=True):
        assert (row["token_count"], row["truncated"]) == (answer["token_count"], answer["truncated"])
        for name, head in answer["heads"].items():
            match head["kind"]:
                case "single_label":
                    assert row[f"{name}_label"] == head["labels"][0]
                    assert row[f"{name}_score"] == pytest.approx(head["scores"][0], abs=1e-5)
                case "multi_label":
                    assert row[f"{name}_labels"] == head["labels"]
                    assert row[f"{name}_scores"] == pytest.approx(head["scores"], abs=1e-5)
                case _:
                    assert row[f"{name}_value"] == pytest.approx(head["value"], abs=1e-5)
    (aside,) = (tmp_path / "out.errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(aside)["row"] == len(TEXTS) + 1


def test_schema_ready_and_stats(served: LocalServer) -> None:
    """The schema is the checkpoint's; readiness is an answer; statistics are refused without the key, in one line."""
    assert run("ready", "--server", served.url("http")).returncode == 0
    heads = json.loads(run("schema", "--json", "--server", served.url("http")).stdout)["heads"]
    assert {head["kind"] for head in heads} == {"single_label", "multi_label", "regression"}
    refused = run("stats", "--server", served.url("http"))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_stats_with_the_key(repository: Path) -> None:
    """Who sends polyhead-serve's key reads the counts."""
    key = "0123456789abcdef"
    with LocalServer(repository, environment={"POLYHEAD_ADMIN_KEY": key, "POLYHEAD_THREADS": "1"}) as server:
        options = ["--server", server.url("http"), "--header", f"polyhead-admin-key:{key}"]
        assert run("classify", "a text", *options).returncode == 0
        (counted,) = json.loads(run("stats", "--json", *options).stdout)
        assert counted["inferences"] >= 1
        assert "texts" in run("stats", *options, COLUMNS="120").stdout
