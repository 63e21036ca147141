"""polyhead-score with a model that reads long texts in windows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from polyhead.predictor import Predictor
from polyhead.windows import LongTexts
from polyhead_scoring.command import app
from polyhead_scoring.run import Request, checkpoint_model
from tests.scoring.texts import write_jsonl
from tests.tiny import TEXTS, write_tiny_checkpoint


def test_a_file_of_long_texts_is_scored_as_by_the_predictor(tmp_path: Path) -> None:
    """Whatever the partitions, which count what is read of a text; only what is not read is truncated."""
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "out.parquet"
    write_tiny_checkpoint(checkpoint, long_texts=LongTexts(stride=36, most_windows=3))
    texts = [" ".join(TEXTS[first : first + 5]) for first in range(5)] + ["word " * 400, *TEXTS]
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    options = ["--checkpoint", str(checkpoint), "--precision", "fp32", "--output", str(output)]
    result = CliRunner().invoke(app, [str(file), *options])
    assert result.exit_code == 0, result.output
    rows = pyarrow.parquet.read_table(output).to_pylist()
    for row, answer in zip(rows, Predictor.load(checkpoint, precision="fp32").predict(texts), strict=True):
        assert (row["token_count"], row["truncated"]) == (answer["token_count"], answer["truncated"])
        assert row["topic_label"] == answer["heads"]["topic"]["labels"][0]
        assert row["stars_value"] == pytest.approx(answer["heads"]["stars"]["value"], abs=1e-5)
    assert max(row["token_count"] for row in rows) == 120
    assert [row["truncated"] for row in rows].count(True) >= 1
    request = Request(data=(str(file),), output=str(output), checkpoint=checkpoint, precision="fp32")
    assert checkpoint_model(request).max_length == 120
