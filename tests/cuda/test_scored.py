"""polyhead-score's engine on CPU and GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.decode import DecodeOptions
from polyhead.precision import TOLERANCE, fastest_precision
from polyhead.predictor import Predictor
from polyhead_scoring.scorer import EngineAnswers
from tests.cuda.devices import GPU
from tests.tiny import TEXTS

MANY = [f"{text} {n}" for n in range(30) for text in TEXTS]


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_scoring_on_the_device(base_checkpoint: Path, device: str) -> None:
    """polyhead-score's engine gives the answers of the device's precision, in the texts' order."""
    predictor = Predictor.load(base_checkpoint, precision="fp32")
    exact = predictor.score(predictor.encode(MANY))
    answers = EngineAnswers(base_checkpoint, device, "auto", DecodeOptions(top_k=3))
    assert answers.precision == fastest_precision(torch.device(device))
    found = [answer for part in answers.answer([MANY[:100], MANY[100:]]) for answer in part]
    scores = [dict(zip(one["heads"]["topic"]["labels"], one["heads"]["topic"]["scores"], strict=True)) for one in found]
    topics = np.array([[row[label] for label in ("news", "sport", "science")] for row in scores])
    assert np.abs(topics - exact[:, :3]).max() <= TOLERANCE[fastest_precision(torch.device(device))]
