"""Weights that are finite and yet too large: a text that overflows has an error, and no other text is affected."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint
from polyhead.decode import DecodeOptions, are_answers, decode, to_scores
from polyhead.precision import PRECISIONS, Precision
from polyhead.predictor import NOT_FINITE, Predictor
from polyhead.schema import NO_SCORE, Architecture, Head, Schema
from tests.tiny import OVERFLOWING, SCHEMA, TEXTS, overflow, write_tiny_checkpoint

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["base", "hidden_state_concat"])
@pytest.mark.parametrize("value", [LARGEST, 3e38, 1e30])
def test_one_text_overflows_alone(
    tmp_path: Path, architecture: Architecture, precision: Precision, value: float
) -> None:
    """It has an error or an answer of finite numbers; the others have the same scores, bit by bit, as without it."""
    write_tiny_checkpoint(tmp_path / "c", architecture)
    sound = Predictor(read_checkpoint(tmp_path / "c"), precision=precision)
    overflow(tmp_path / "c", value)
    predictor = Predictor.load(tmp_path / "c", precision=precision)
    texts = [*TEXTS, *(f"{OVERFLOWING} {text}" for text in TEXTS), *(f"{text} ~" for text in TEXTS[:5]), "", *TEXTS]
    answers = predictor.predict(texts)
    scores = predictor.score(predictor.encode(texts))
    expected = sound.score(sound.encode(texts))
    for text, answer, found, wanted in zip(texts, answers, scores, expected, strict=True):
        if "~" in text:
            assert answer == {"error": NOT_FINITE} or all_finite(answer), text
            assert ("error" in answer) == (not np.isfinite(found).all())
        elif text:
            np.testing.assert_array_equal(found, wanted)
            assert "heads" in answer
    if value > 1e38 and precision == "fp32":
        assert predictor.predict([OVERFLOWING]) == [{"error": NOT_FINITE}]


def all_finite(answer: Any) -> bool:
    """Whether every number in the answer is finite."""
    match answer:
        case dict():
            return all(map(all_finite, answer.values()))
        case list():
            return all(map(all_finite, answer))
        case float():
            return math.isfinite(answer)
    return True


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", range(8))
def test_a_logit_that_is_not_finite_is_no_score(bad: float, column: int) -> None:
    """A sigmoid would make 0 or 1 of an infinite logit; the whole row is NaN instead, and the other row stays."""
    logits = np.zeros((2, 8), dtype=np.float32)
    logits[1, column] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = to_scores(logits, SCHEMA)
    assert np.isnan(scores[1]).all()
    np.testing.assert_array_equal(scores[0], to_scores(logits[:1], SCHEMA)[0])
    assert are_answers(scores).tolist() == [True, False]


@given(
    logits=st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=4, max_size=4),
    temperature=st.floats(min_value=5e-324, max_value=1.7e308),
)
def test_any_finite_logits_and_temperature_give_scores(logits: list[float], temperature: float) -> None:
    """No temperature that a schema takes makes NaN of finite logits: the answer is an answer, of finite numbers."""
    schema = Schema(
        [
            Head(name="one", kind="single_label", labels=("a", "b"), temperature=temperature),
            Head(name="any", kind="multi_label", labels=("c",), temperature=temperature),
            Head(name="range", kind="regression", y_range=(-3e38, 3e38), temperature=temperature),
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (scores,) = to_scores(np.array([logits], dtype=np.float32), schema)
    assert are_answers(scores)
    assert all_finite(decode(scores, schema, DecodeOptions(top_k=2)))


def test_the_sentinel_is_no_answer() -> None:
    """On the wire the lowest float32 stands for no score, so a text with it has none in any form."""
    row = np.zeros((3, SCHEMA.width), dtype=np.float32)
    row[1, -1] = NO_SCORE
    row[2, 0] = np.nan
    assert are_answers(row).tolist() == [True, False, False]
