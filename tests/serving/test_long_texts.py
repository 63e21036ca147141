"""model.py with a model that reads long texts in windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from polyhead.windows import LongTexts
from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import Request, texts
from tests.serving.served_model import only, predictions, start
from tests.tiny import TEXTS, write_tiny_checkpoint

LONG = " ".join(TEXTS[:4]).encode()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose model has windows of 48 tokens, 36 apart, and at most three of them."""
    folder = tmp_path_factory.mktemp("windows")
    write_tiny_checkpoint(folder / "checkpoint", long_texts=LongTexts(stride=36, most_windows=3))
    export_checkpoint(folder / "checkpoint", folder / "repository")
    return folder / "repository"


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model; `execute` waits for all answers."""
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    served = start(repository, monkeypatch, at_once_s="60")
    yield served
    served.finalize()


def test_long_texts_are_answered_as_by_the_predictor(model: Any, repository: Path) -> None:
    """Beside short, bad and equal texts, on the wire as ever; only what is not read is truncated."""
    rows = [LONG, b"Rain", b" ", b"word " * 400, LONG]
    response = only(model, Request(texts(*rows)))
    predictor = Predictor.load(repository / "gpt2_classifier" / "1" / "checkpoint")
    assert predictions(response) == predictor.predict(rows)
    tokens = len(predictor.checkpoint.tokenizer.encode(LONG.decode()).ids)
    assert 48 < tokens < 120
    assert response["TOKEN_COUNT"][:, 0].tolist() == [
        tokens,
        predictor.encode([b"Rain"])[0].token_count,
        0,
        120,
        tokens,
    ]
    assert [row.get("truncated") for row in predictions(response)] == [False, False, None, True, False]
    np.testing.assert_array_equal(response["SCORES"][0], response["SCORES"][4])


def test_metrics_tell_read_tokens_from_computed_ones(model: Any) -> None:
    """A text of 48 to 120 tokens is read once, and computed with what its windows share; equal texts once."""
    response = only(model, Request(texts(LONG, LONG)))
    model.finalize()
    value, tokens = pb_utils.MetricFamily.value, int(response["TOKEN_COUNT"][0, 0])
    assert value("polyhead_tokens_total") == [2 * tokens]
    assert value("polyhead_truncated_texts_total") == []
    shared = 12 * (1 if tokens <= 84 else 2)
    assert sum(value("polyhead_micro_batch_tokens")) == tokens + shared
