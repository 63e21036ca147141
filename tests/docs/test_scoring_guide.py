"""docs/scoring.md: its rows, commands and snippet, run as they stand there."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import typer

from polyhead_scoring.command import app

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "scoring.md"
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """The guide's fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    """What a command prints; it must end well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{shlex.join(command)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, base_checkpoint: Path) -> tuple[Path, list[str]]:
    """A folder in which the guide was followed from top to bottom, and what its commands printed."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(base_checkpoint, folder / "runs" / "reviews")
    (folder / "reviews.jsonl").write_text(blocks("jsonl")[0], encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in "".join(blocks("sh")).splitlines()]
    return folder, [run(command, folder) for command in commands]


def test_the_commands_do_what_the_guide_says(followed: tuple[Path, list[str]]) -> None:
    """The first scores all, the second nothing; the third gives two labels and no column of the input but one."""
    folder, printed = followed
    assert "3 rows (" in printed[0]
    assert printed[1].endswith("scored.csv: 3 rows, 0 of them with an error\n")
    with (folder / "scored.csv").open(encoding="utf-8", newline="") as file:
        scored = list(csv.DictReader(file))
    assert [row["shop"] for row in scored] == ["north", "south", ""]
    assert all(row["topic_label"] and not row["error"] for row in scored)
    table = pyarrow.parquet.read_table(folder / "best")
    assert table.column_names[0] == "id"
    assert "review" not in table.column_names
    assert [len(labels) for labels in table.column("topic_labels").to_pylist()] == [2, 2, 2]
    for name in ("best/_manifest.json", "scored.csv.manifest.json"):
        partition = json.loads((folder / name).read_text(encoding="utf-8"))["partitions"][0]
        assert {"input", "first_row", "rows", "errors"} <= partition.keys()


def test_the_output_reads_as_one_table(followed: tuple[Path, list[str]]) -> None:
    """The snippet prints one answer per row."""
    folder, _ = followed
    printed = run([sys.executable, "-c", blocks("python")[0]], folder)
    assert printed.count("'error': None") == 3
    assert printed.count("'topic_label': ") == 3


def test_options_exist() -> None:
    """Each option that the guide names is one of the command's."""
    options = {name for one in typer.main.get_command(app).params for name in one.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE.read_text(encoding="utf-8")))
    assert named - {"--help"} <= options
