"""A mistake in a command, a config or the first row of a file is reported before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny_run import write_run

COMMANDS = {
    "train": "polyhead_training.train_command",
    "evaluate": "polyhead_training.evaluate_command",
    "import": "polyhead_training.import_checkpoint",
    "dataset": "polyhead_training.dataset",
    "score": "polyhead_scoring.command",
    "golden": "polyhead_scoring.golden",
    "export": "polyhead.export",
    "deploy": "polyhead_serving.deploy",
    "client": "polyhead_client.cli",
}
RUN = """
import importlib, sys
command = importlib.import_module(sys.argv.pop(1))
try:
    command.main()
except SystemExit as end:
    slow = {"torch", "transformers", "sklearn", "matplotlib", "ray", "peft"} & set(sys.modules)
    print("exit", end.code, "slow", *sorted(slow))
"""
IMPORT = """\
architecture = "base"
head_class_sizes = 2
max_length = 12
texts = "rows.jsonl"
[[heads]]
name = "topic"
labels = ["cats", "dogs"]
"""


@pytest.fixture
def folder(tmp_path: Path, base_checkpoint: Path) -> Path:
    """A training config with its rows, a checkpoint, and files with mistakes."""
    write_run(tmp_path)
    (tmp_path / "checkpoint").symlink_to(base_checkpoint)
    (tmp_path / "no-text.csv").write_text("txt,topic\na,cats\n", encoding="utf-8")
    (tmp_path / "number.jsonl").write_text(2 * '{"text": 3, "topic": "cats", "stars": 1}\n', encoding="utf-8")
    (tmp_path / "stars.jsonl").write_text('{"text": "a", "topic": "cats", "stars": "many"}\n', encoding="utf-8")
    (tmp_path / "import.toml").write_text(IMPORT, encoding="utf-8")
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed" / "model.safetensors").write_bytes(b"")
    return tmp_path


def edited(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """The name of a changed copy of a file in the folder."""
    text = (folder / name).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / f"changed-{name}").write_text(text, encoding="utf-8")
    return f"changed-{name}"


TRAIN = {
    "a key": (("epochs = 2", "epoch = 2"), "training: unknown field 'epoch'"),
    "a file": (("rows.jsonl", "row.jsonl"), "row.jsonl: no such file"),
    "a column": (('name = "topic"', 'name = "subject"'), "has no column 'subject', only text, topic, stars"),
    "a text": (
        ("rows.jsonl", "number.jsonl"),
        "number.jsonl:1: column 'text' must be a string, got a number. Of 2 rows, 2",
    ),
    "a label": (("rows.jsonl", "stars.jsonl"), "stars.jsonl:1: column 'stars'"),
    "a text column": (("rows.jsonl", "no-text.csv"), "no-text.csv: has no column 'text', only txt, topic"),
    "a function": (
        ("[model]", 'filters = ["nowhere:at_all"]\n[model]'),
        "data.filters 'nowhere:at_all': cannot be imported",
    ),
    "a transform": (
        ("[model]", 'text_transforms = ["upper"]\n[model]'),
        "data.text_transforms 'upper': must be one of",
    ),
    "a time": (
        ("[model]", 'split = "time"\ntime_column = "topic"\n[model]'),
        "rows.jsonl:1: column 'topic': 'cats' is no time",
    ),
    "a group column": (
        ("[model]", 'split = "group"\ngroup_column = "shop"\n[model]'),
        "rows.jsonl: has no column 'shop', only text, topic, stars",
    ),
    "a split": (("[model]", 'split = "group"\n[model]'), "split = 'group' needs group_column"),
    "a share": (
        ("[model]", "similar_share = 0.1\n[model]"),
        "similar_share goes with split = 'group' and split = 'time'",
    ),
    "a template": (("[model]", 'text_template = "{a"\n[model]'), "data.text_template '{a': character 1"),
    "weights": (("max_length = 12", 'pretrained = "./nowhere"'), "model.pretrained './nowhere' in "),
}


@pytest.mark.parametrize("mistake", TRAIN)
def test_training(folder: Path, mistake: str) -> None:
    """Each mistake in a config, or in what it names."""
    change, message = TRAIN[mistake]
    changes = [change, ("gpt2 = {", "# {")] if mistake == "weights" else [change]
    assert_early("train", [edited(folder, "config.toml", *changes)], message, folder)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", "nothing rows.jsonl", "nothing: is not a checkpoint folder; it does not exist"),
        ("evaluate", "checkpoint nothing.csv", "nothing.csv: no such file"),
        ("evaluate", "checkpoint no-text.csv", "no-text.csv: has no column 'text', only txt, topic"),
        ("evaluate", "checkpoint rows.jsonl --slice sort", "has no column 'sort', only text, topic, stars"),
        ("evaluate", "checkpoint stars.jsonl --without mood", "stars.jsonl:1: column 'stars'"),
        ("evaluate", "checkpoint rows.jsonl --device tpu", "--device 'tpu': allowed are cpu and cuda"),
        ("evaluate", "checkpoint rows.jsonl --config nothing.toml", "nothing.toml: no such file"),
        ("import", "nothing --config import.toml --output out", "nothing/model.safetensors: is missing"),
        ("import", "seed --config nothing.toml --output out", "nothing.toml: no such file"),
        ("import", "seed --config columns.toml --output out", "has no column 'body', only text, topic, stars"),
        ("import", "seed --config number.toml --output out", "number.jsonl:1: column 'text' must be a string"),
        ("dataset", "debian rows.jsonl", "rows.jsonl: holds something that is no data set"),
        (
            "score",
            "no-text.csv --checkpoint checkpoint --output out.csv",
            "no-text.csv: no column 'text'; it has 'txt'",
        ),
        ("score", "rows.jsonl --checkpoint nothing --output out.csv", "nothing: is not a checkpoint folder"),
        ("score", "nothing.csv --checkpoint checkpoint --output out.csv", "nothing.csv: no such file"),
        ("golden", "checkpoint no-text.csv out.jsonl", "no-text.csv: no column 'text'; it has 'txt'"),
        ("golden", "checkpoint number.jsonl out.jsonl", "number.jsonl:1: column 'text' must be a string"),
        ("golden", "nothing rows.jsonl out.jsonl", "nothing: is not a checkpoint folder"),
        ("export", "nothing", "nothing: is not a checkpoint folder"),
        ("export", "seed", "seed/config.json: is missing"),
        ("deploy", "nothing --repository nowhere", "POLYHEAD_ADMIN_KEY"),
        ("client", "classify text --server nowhere:x", "port"),
    ],
)
def test_other_commands(folder: Path, command: str, arguments: str, message: str) -> None:
    """Each mistake in what a command is given."""
    texts = 'texts = "rows.jsonl"'
    (folder / "columns.toml").write_text(IMPORT.replace(texts, f'{texts}\ntext_column = "body"'), encoding="utf-8")
    (folder / "number.toml").write_text(IMPORT.replace(texts, 'texts = "number.jsonl"'), encoding="utf-8")
    assert_early(command, arguments.split(), message, folder)


def assert_early(command: str, arguments: list[str], message: str, folder: Path) -> None:
    """The command ends with exit code 2 and one line that has the message, and has imported nothing slow."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, COMMANDS[command], *arguments],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert message in result.stderr, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout.splitlines()[-1] == "exit 2 slow", result
