"""Texts in, answers out; a bad text affects only its own answer."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.precision import TOLERANCE, Precision
from polyhead.predictor import Predictor
from tests.tiny import MAX_LENGTH, SCHEMA, TEXTS


@pytest.fixture(scope="module")
def predictor(base_checkpoint: Path) -> Predictor:
    """A predictor of the tiny base checkpoint."""
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
def test_a_bad_text_affects_only_itself(predictor: Predictor, bad: str | bytes, error: str) -> None:
    """Its answer is an error and its scores are NaN; the other texts have the same answers as without it."""
    answers = predictor.predict([TEXTS[0], bad, TEXTS[1]])
    alone = predictor.predict([TEXTS[0], TEXTS[1]])
    assert answers[1] == {"error": error}
    assert [answers[0], answers[2]] == alone
    assert np.isnan(predictor.score(predictor.encode([bad]))).all()


def test_truncation_is_reported(predictor: Predictor) -> None:
    """A text beyond max_length is read up to there and reported as truncated; a short text is not."""
    long, short = predictor.predict([TEXTS[-1], TEXTS[3]])
    assert (long["truncated"], long["token_count"]) == (True, MAX_LENGTH)
    assert short["truncated"] is False
    assert short["token_count"] < MAX_LENGTH


def test_exactly_max_length_is_not_truncated(predictor: Predictor) -> None:
    """A text of exactly max_length tokens is not truncated."""
    text = predictor._tokenizer.decode(predictor.encode([TEXTS[-1]])[0].token_ids)
    encoded = predictor.encode([text])[0]
    assert (encoded.token_count, encoded.truncated) == (MAX_LENGTH, False)


class Watched(Predictor):
    """A predictor that tokenizes ahead, as on a GPU; scoring a chunk waits until the next chunk has been tokenized."""

    def __init__(self, checkpoint: Any, chunks: int) -> None:
        super().__init__(checkpoint)
        self.tokenizes_ahead = True
        self.log: list[str] = []
        self._chunks = chunks
        self._changed = threading.Condition()

    def encode(self, texts: Any, **given: Any) -> Any:
        if "break" in texts:
            raise RuntimeError("the tokenizer broke")
        encoded = super().encode(texts, **given)
        with self._changed:
            self.log.append(f"tokenized {len(texts)}")
            self._changed.notify()
        return encoded

    def score(self, encoded: Any) -> Any:
        with self._changed:
            wanted = min(self.log.count("scored") + 2, self._chunks)
            assert self._changed.wait_for(lambda: len(self.log) - self.log.count("scored") >= wanted, timeout=20)
            self.log.append("scored")
        return super().score(encoded)


def test_a_chunk_is_tokenized_while_the_one_before_is_computed(predictor: Predictor) -> None:
    """On a GPU; the answers and their order are the same as one chunk after the other."""
    chunks = [TEXTS[:3], TEXTS[3:5], [], TEXTS[5:]]
    watched = Watched(predictor.checkpoint, len(chunks))
    expected = [predictor.predict(chunk) for chunk in chunks]
    assert list(watched.predict_chunks(iter(chunks))) == expected
    assert not predictor.tokenizes_ahead
    assert list(predictor.predict_chunks(chunks)) == expected
    assert watched.log[:2] == ["tokenized 3", "tokenized 2"]
    assert watched.log.index("scored") == 2
    assert list(watched.predict_chunks([])) == []


def test_tokenizing_ahead_ends_with_its_caller(predictor: Predictor) -> None:
    """An error in the other thread reaches the caller, and no thread is left, whether all chunks are read or not."""
    watched = Watched(predictor.checkpoint, 0)
    found = watched.predict_chunks([TEXTS[:2], TEXTS[2:4], TEXTS[4:]])
    assert next(found) == predictor.predict(TEXTS[:2])
    found.close()
    found = watched.predict_chunks([TEXTS[:2], ["break"]])
    next(found)
    with pytest.raises(RuntimeError, match="the tokenizer broke"):
        next(found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("polyhead-tokenizer")]


def test_bytes_and_text_are_the_same(predictor: Predictor) -> None:
    """UTF-8 bytes, as they come over the wire, get the same answer as the string."""
    assert predictor.predict([text.encode() for text in TEXTS]) == predictor.predict(TEXTS)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.one_of(st.text(max_size=80), st.sampled_from(TEXTS)), min_size=1, max_size=8))
def test_any_text_alone_answers_as_in_its_batch(predictor: Predictor, texts: list[str]) -> None:
    """Scores alone and in a batch agree within 1e-5; errors and lengths agree exactly."""
    together = predictor.encode(texts)
    scores = predictor.score(together)
    for position, text in enumerate(texts):
        alone = predictor.encode([text])
        assert alone[0] == together[position]
        np.testing.assert_allclose(predictor.score(alone)[0], scores[position], atol=1e-5)


def test_end_of_text_is_a_token_like_any_other(predictor: Predictor) -> None:
    """A literal <|endoftext|> inside a text does not end the text."""
    with_end, without = predictor.encode(["before <|endoftext|> after", "before"])
    assert with_end.token_count > without.token_count
    assert 0 in with_end.token_ids


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_schema_says_how_exact_scores_are(base_checkpoint: Path, precision: Precision) -> None:
    """SCHEMA carries max_length, the heads, the precision that the engine computes in, and its tolerance."""
    served = json.loads(Predictor.load(base_checkpoint, precision=precision).schema_json())
    assert served == {
        "max_length": MAX_LENGTH,
        "precision": precision,
        "tolerance": TOLERANCE[precision],
        "text_template": None,
        "fields": [],
        "heads": SCHEMA.to_json(),
    }
