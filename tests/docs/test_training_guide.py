"""docs/training.md: its configs and commands, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from polyhead.predictor import Predictor

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """The guide's fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the guide was followed from top to bottom."""
    folder = tmp_path_factory.mktemp("guide")
    for name, content in zip(("tickets.toml", "trips.toml"), blocks("toml"), strict=True):
        (folder / name).write_text(content, encoding="utf-8")
    for name, content in zip(("tickets.csv", "new-tickets.csv", "trips.csv"), blocks("csv"), strict=True):
        (folder / name).write_text(content, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    for line in "".join(blocks("sh")).splitlines():
        command = shlex.split(line, comments=True)
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
    return folder


def test_the_first_model_learns_its_teams(ran: Path) -> None:
    """It answers the rows of its CSV, and more than half of the new ones; both have a report."""
    trained = json.loads((ran / "runs/tickets/metrics.json").read_text(encoding="utf-8"))["validation"]["team"]
    assert trained["accuracy"] > 0.9
    evaluated = json.loads((ran / "reports/tickets/metrics.json").read_text(encoding="utf-8"))
    assert evaluated["heads"]["team"]["accuracy"] > 0.6
    for folder in (ran / "runs/tickets/report", ran / "reports/tickets"):
        assert {"index.html", "predictions.parquet", "README.md", "metrics.json"} <= {
            path.name for path in folder.iterdir()
        }
    assert (ran / "repository/gpt2_classifier/1/checkpoint/config.json").exists()


def test_the_second_model_has_heads_of_every_kind(ran: Path) -> None:
    """Its city agrees with its country, its number lies in the range, and upper case reads as lower."""
    predictor = Predictor.load(ran / "runs/trips")
    assert predictor.schema["city"].parent_of == {
        "Amsterdam": "Netherlands", "Melbourne": "Australia", "Rotterdam": "Netherlands", "Sydney": "Australia",
    }  # fmt: skip
    answer, upper = predictor.predict(["Canals  and tulips", "CANALS AND TULIPS"])
    assert answer == upper
    city = answer["heads"]["city"]["labels"][0]
    assert predictor.schema["city"].parent_of[city] == answer["heads"]["country"]["labels"][0]
    assert 0 < answer["heads"]["visits"]["value"] < 5
