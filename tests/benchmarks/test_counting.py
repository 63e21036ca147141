"""benchmarks.counting: what counting answers costs."""

from __future__ import annotations

from pathlib import Path

import polyhead.encode
from benchmarks.counting import measure
from polyhead.predictor import Predictor
from polyhead.scripts import scripts_of
from tests.tiny import TEXTS


def test_the_cost_is_measured(base_checkpoint: Path) -> None:
    """It is a share of the model's time; afterwards scripts are found again."""
    found = measure(Predictor.load(base_checkpoint), TEXTS * 10, 1, "tiny")
    assert found["texts"] == 100
    assert found["counting_alone_us"] > 0
    assert found["share_of_cpu"] < 1
    assert polyhead.encode.scripts_of is scripts_of  # type: ignore[attr-defined]
