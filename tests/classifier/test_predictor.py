"""Texts in, answers out; a bad text spoils its own answer alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.predictor import Predictor
from tests.tiny import MAX_LENGTH, TEXTS


@pytest.fixture(scope="module")
def predictor(base_checkpoint: Path) -> Predictor:
    """Of the tiny base checkpoint."""
    return Predictor.load(base_checkpoint)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("", "the text is empty or blank"),
        (" \n\t　", "the text is empty or blank"),
        (b"\xff\xfe", "the text is not valid UTF-8"),
        ("\ud800", "the text is not valid UTF-8"),
    ],
)
def test_a_bad_text_spoils_only_itself(predictor: Predictor, bad: str | bytes, error: str) -> None:
    """Its answer is an error, its scores are NaN, and its neighbours' answers are what they are without it."""
    answers = predictor.predict([TEXTS[0], bad, TEXTS[1]])
    alone = predictor.predict([TEXTS[0], TEXTS[1]])
    assert answers[1] == {"error": error}
    assert [answers[0], answers[2]] == alone
    assert np.isnan(predictor.score(predictor.encode([bad]))).all()


def test_truncation_is_said(predictor: Predictor) -> None:
    """A text beyond max_length is read to there and says so; one that fits is not."""
    long, short = predictor.predict([TEXTS[-1], TEXTS[3]])
    assert (long["truncated"], long["token_count"]) == (True, MAX_LENGTH)
    assert short["truncated"] is False
    assert short["token_count"] < MAX_LENGTH


def test_exactly_max_length_is_not_truncated(predictor: Predictor) -> None:
    """A text of exactly max_length tokens is read whole."""
    text = predictor._tokenizer.decode(predictor.encode([TEXTS[-1]])[0].token_ids)
    encoded = predictor.encode([text])[0]
    assert (encoded.token_count, encoded.truncated) == (MAX_LENGTH, False)


def test_bytes_and_text_are_the_same(predictor: Predictor) -> None:
    """UTF-8 bytes, as the wire brings them, answer as the text does."""
    assert predictor.predict([text.encode() for text in TEXTS]) == predictor.predict(TEXTS)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.one_of(st.text(max_size=80), st.sampled_from(TEXTS)), min_size=1, max_size=8))
def test_any_text_alone_answers_as_in_its_batch(predictor: Predictor, texts: list[str]) -> None:
    """Scores alone and in the batch agree within 1e-5, errors and lengths exactly."""
    together = predictor.encode(texts)
    scores = predictor.score(together)
    for position, text in enumerate(texts):
        alone = predictor.encode([text])
        assert alone[0] == together[position]
        np.testing.assert_allclose(predictor.score(alone)[0], scores[position], atol=1e-5)


def test_end_of_text_is_a_token_like_any_other(predictor: Predictor) -> None:
    """A literal end-of-text inside a text does not cut the text there."""
    with_end, without = predictor.encode(["before <|endoftext|> after", "before"])
    assert with_end.token_count > without.token_count
    assert 0 in with_end.token_ids
