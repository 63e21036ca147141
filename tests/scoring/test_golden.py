"""polyhead-golden: expected answers for texts of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtest.golden import read_golden
from polyhead.golden import main
from polyhead.predictor import Predictor
from tests.tiny import TEXTS


def test_rows_are_the_engines_answers(base_checkpoint: Path, tmp_path: Path) -> None:
    """Each text, also beyond one chunk, has what the model gives; a blank one has no row."""
    texts = [f"{TEXTS[0]} {place}" for place in range(300)]
    source, out = tmp_path / "texts.txt", tmp_path / "expected.jsonl"
    source.write_text("\n".join([texts[0], "", *texts[1:], TEXTS[-1]]) + "\n", encoding="utf-8")
    assert main([str(base_checkpoint), str(source), str(out)]) == 0
    rows = read_golden(out)
    assert [row.text for row in rows] == [*texts, TEXTS[-1]]
    predictor = Predictor.load(base_checkpoint, precision="fp32")
    expected = predictor.score(predictor.encode([row.text for row in rows]))
    np.testing.assert_allclose([row.scores for row in rows], expected, atol=1e-5)
    assert [row.truncated for row in rows] == [False] * 300 + [True]
    assert rows[-1].token_count == predictor.max_length


def test_reads_json_lines(base_checkpoint: Path, tmp_path: Path) -> None:
    """Of JSON lines the named field is read, and of these only as many as asked for."""
    source, out = tmp_path / "texts.jsonl", tmp_path / "expected.jsonl"
    source.write_text("".join(json.dumps({"body": f"text {place}"}) + "\n" for place in range(5)), encoding="utf-8")
    assert main([str(base_checkpoint), str(source), str(out), "--field", "body", "--most", "3"]) == 0
    assert [row.text for row in read_golden(out)] == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("texts.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ":2: has no text (KeyError: 'text')"),
        ("texts.jsonl", b'{"text": 3}\n', ":1: text must be a string, got int"),
        ("texts.txt", b"fine\n\xff\n", ":2: has no text (UnicodeDecodeError"),
        ("texts.txt", b"\n \n", "has no text that the model can answer"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_refuses_and_leaves_the_file_as_it_was(
    name: str,
    content: bytes | None,
    words: str,
    base_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad line is named with exit code 2, and an older file stays whole."""
    source, out = tmp_path / name, tmp_path / "expected.jsonl"
    out.write_text("older\n")
    if content is not None:
        source.write_bytes(content)
    assert main([str(base_checkpoint), str(source), str(out)]) == 2
    assert words in capsys.readouterr().err
    assert out.read_text() == "older\n"
    assert list(tmp_path.glob(".golden-*")) == []
