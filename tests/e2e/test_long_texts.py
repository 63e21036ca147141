"""A real tritonserver with a model that reads long texts in windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from polyhead.windows import LongTexts
from polyhead_client import Client
from tests.e2e.processes import ONE_THREAD
from tests.tiny import TEXTS, write_tiny_checkpoint


def test_the_client_gets_the_predictors_answers(tmp_path: Path) -> None:
    """Long, short, truncated and blank texts in one request; the schema says how much of a text is read."""
    write_tiny_checkpoint(tmp_path / "checkpoint", long_texts=LongTexts(stride=36, most_windows=3))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository")
    predictor = Predictor.load(tmp_path / "repository" / "gpt2_classifier" / "1" / "checkpoint")
    texts = [" ".join(TEXTS[:4]), TEXTS[3], " ", "word " * 400]
    with LocalServer(tmp_path / "repository", environment=ONE_THREAD) as served, Client(served.url("http")) as client:
        assert client.schema().max_length == predictor.max_length == 120
        found = client.classify(texts)
    assert [one.truncated for one in found] == [False, False, False, True]
    for one, answer in zip(found, predictor.predict(texts), strict=True):
        assert one.error == answer.get("error")
        if one.error is None:
            assert one.token_count == answer["token_count"]
            assert one["topic"].label == answer["heads"]["topic"]["labels"][0]
            assert one["stars"].value == pytest.approx(answer["heads"]["stars"]["value"], abs=1e-5)
