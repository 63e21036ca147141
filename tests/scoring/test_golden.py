"""polyhead-golden: expected answers for your own texts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError
from polyhead.golden import GoldenRow
from polyhead.predictor import Predictor
from polyhead_scoring.golden import app
from tests.tiny import OVERFLOWING, TEXTS, overflow


def call(*arguments: Any) -> Any:
    """Runs the command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def golden_rows(path: Path) -> list[GoldenRow]:
    """The rows that the command wrote."""
    return [GoldenRow.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_the_engines_answers(base_checkpoint: Path, tmp_path: Path) -> None:
    """Each text, also beyond one chunk, has what the model gives; a blank one has no row."""
    texts = [f"{TEXTS[0]} {place}" for place in range(300)]
    source, out = tmp_path / "texts.txt", tmp_path / "expected.jsonl"
    source.write_text("\n".join([texts[0], "", *texts[1:], TEXTS[-1]]) + "\n", encoding="utf-8")
    result = call(base_checkpoint, source, out)
    assert (result.exit_code, result.stdout) == (0, f"wrote {out}: 301 texts with their scores\n")
    rows = golden_rows(out)
    assert [row.text for row in rows] == [*texts, TEXTS[-1]]
    predictor = Predictor.load(base_checkpoint, precision="fp32")
    expected = predictor.score(predictor.encode([row.text for row in rows]))
    np.testing.assert_allclose([row.scores for row in rows], expected, atol=1e-5)
    assert [row.truncated for row in rows] == [False] * 300 + [True]
    assert rows[-1].token_count == predictor.max_length


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.csv"])
def test_reads_tables(name: str, base_checkpoint: Path, tmp_path: Path) -> None:
    """Of a table the named column is read, and only as many texts as asked for."""
    source, out = tmp_path / name, tmp_path / "expected.jsonl"
    lines = [json.dumps({"body": f"text {place}"}) for place in range(5)]
    if name == "texts.csv":
        lines = ["body", *(f"text {place}" for place in range(5))]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert call(base_checkpoint, source, out, "--text-column", "body", "--most", "3").exit_code == 0
    assert [row.text for row in golden_rows(out)] == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("texts.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ":2: no column 'text'"),
        ("texts.jsonl", b'{"text": 3}\n', ":1: column 'text' must be a string, got a number"),
        ("texts.txt", b"fine\n\xff\n", ":2: "),
        ("texts.txt", b"\n \n", "has no text that the model can answer"),
        ("missing.txt", None, "no such file"),
    ],
)
def test_refuses_and_leaves_the_file_as_it_was(
    name: str, content: bytes | None, words: str, base_checkpoint: Path, tmp_path: Path
) -> None:
    """A bad line is named with exit code 2, and an older file stays as it was."""
    source, out = tmp_path / name, tmp_path / "expected.jsonl"
    out.write_text("older\n")
    if content is not None:
        source.write_bytes(content)
    result = call(base_checkpoint, source, out)
    assert result.exit_code == 2
    assert words in result.stderr
    assert out.read_text() == "older\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, out.name} if content else {out.name})


def test_an_output_that_cannot_be_written(base_checkpoint: Path, tmp_path: Path) -> None:
    """The message names the file that was asked for, not a temporary one."""
    (tmp_path / "texts.txt").write_text("a\n")
    out = tmp_path / "missing" / "expected.jsonl"
    result = call(base_checkpoint, tmp_path / "texts.txt", out)
    assert result.exit_code == 2
    assert result.stderr == f"polyhead-golden: {out}: cannot be written (No such file or directory)\n"


def test_sigterm_leaves_nothing(base_checkpoint: Path, tmp_path: Path) -> None:
    """Exit code 130, the older file, and no temporary folder."""
    out = tmp_path / "expected.jsonl"
    out.write_text("older\n")
    command = [sys.executable, "-m", "polyhead_scoring.golden", str(base_checkpoint), "-", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:  # the temporary folder; the command waits for its input
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.stderr is not None
        assert process.stderr.read() == "polyhead-golden: interrupted; nothing is written\n"
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "older\n"


def test_imports_no_ray() -> None:
    """Golden rows are made on the machines where models are trained and served, without the extra."""
    command = "import sys, polyhead_scoring.golden; print('ray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_text_whose_scores_overflow_has_no_row(damaged: Callable[[], Path], tmp_path: Path) -> None:
    """A file of expected answers holds finite numbers only."""
    checkpoint = damaged()
    overflow(checkpoint)
    source, out = tmp_path / "texts.txt", tmp_path / "expected.jsonl"
    source.write_text(f"{TEXTS[0]}\n{OVERFLOWING}\n{TEXTS[3]}\n", encoding="utf-8")
    assert call(checkpoint, source, out).exit_code == 0
    assert [row.text for row in golden_rows(out)] == [TEXTS[0], TEXTS[3]]
    source.write_text(f"{OVERFLOWING}\n", encoding="utf-8")
    assert "has no text that the model can answer" in call(checkpoint, source, out).stderr


def edit_heads(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    """Changes the polyhead section of config.json in place."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    change(config["polyhead"])
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")


def to_format_1(checkpoint: Path) -> None:
    """Makes the checkpoint one from before golden rows held what a caller sees."""
    edit_heads(checkpoint, lambda section: section.pop("format"))
    rows = [json.loads(line) for line in (checkpoint / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("text", "scores", "token_count", "truncated")
    lines = [json.dumps({name: row[name] for name in names}) + "\n" for row in rows]
    (checkpoint / "golden.jsonl").write_text("".join(lines), encoding="utf-8")


RENAMED = [
    lambda section: section["heads"][1].update(thresholds=[0.9, 0.8, 0.7, 0.6]),
    lambda section: section["heads"][0]["labels"].reverse(),
    lambda section: section["heads"][0].update(name="subject"),
]
RESCALED = [
    lambda section: section["heads"][0].update(temperature=2.0),
    lambda section: section["heads"][2].update(y_range=[1.0, 5.0]),
    lambda section: section["heads"][2].update(target_scale=[98_000.0, 27_000.0]),
]


# A row of format 1 does not know its temperature, so another one looks like other weights.
@pytest.mark.parametrize(("change", "number"), [*product(RENAMED, (1, 2)), *product(RESCALED, (2,))])
def test_a_config_that_was_changed_on_purpose_is_accepted(
    damaged: Callable[[], Path], change: Callable[[Any], Any], number: int
) -> None:
    """The rows prove the weights with the old heads, then get the answers of the new ones; texts stay."""
    checkpoint = damaged()
    texts = [row.text for row in golden_rows(checkpoint / "golden.jsonl")]
    if number == 1:
        to_format_1(checkpoint)
    edit_heads(checkpoint, change)
    if number == 2:
        with pytest.raises(CheckpointError, match="made with"):
            Predictor.load(checkpoint)
    result = call(checkpoint, "--accept-config")
    assert result.exit_code == 0, result.output
    assert Predictor.load(checkpoint).check_golden() < 1e-5
    assert [row.text for row in golden_rows(checkpoint / "golden.jsonl")] == texts
    assert read_checkpoint(checkpoint).unproved is None


def test_other_weights_and_other_sizes_are_not_accepted(damaged: Callable[[], Path]) -> None:
    """Accepting a config never accepts weights, nor what decides how weights and texts are read."""
    checkpoint = damaged()
    before = {file: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    for change, words in (
        (lambda section: section.update(max_length=40), "max_length was 48 and is 40; only heads and text_template"),
        (lambda section: section["heads"].reverse(), "heads must have as many labels"),
    ):
        edit_heads(checkpoint, change)
        result = call(checkpoint, "--accept-config")
        assert (result.exit_code, words in result.stderr) == (2, True), result.output
        (checkpoint / "config.json").write_bytes(before[checkpoint / "config.json"])
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["head.weight"][0, 0] += 1
    save_file(tensors, checkpoint / "model.safetensors")
    result = call(checkpoint, "--accept-config")
    assert (result.exit_code, "is off by" in result.stderr) == (2, True), result.output
    assert (checkpoint / "golden.jsonl").read_bytes() == before[checkpoint / "golden.jsonl"]


@pytest.mark.parametrize("arguments", [[], ["texts.txt"], ["texts.txt", "out.jsonl", "--accept-config"]])
def test_texts_or_a_config(base_checkpoint: Path, arguments: list[str]) -> None:
    """The command does one of the two, and says so."""
    result = call(base_checkpoint, *arguments)
    assert (result.exit_code, "give TEXTS and OUT, or --accept-config" in result.stderr) == (2, True), result.output
