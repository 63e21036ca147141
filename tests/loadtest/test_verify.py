"""Comparing answers with the expected ones, and finding whose answer a wrong one is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.expected import ExpectedAnswer, find_mismatches, find_owner
from polyhead.gate import distances
from polyhead.schema import Head, Schema
from polyhead_client import (
    HeadKind,
    HeadSchema,
    LabelScore,
    ModelSchema,
    MultiLabel,
    Prediction,
    Regression,
    SingleLabel,
)
from tests.client.fake_triton import ANSWER, SCHEMA, SCORES

SERVED = ModelSchema.from_json(json.dumps(SCHEMA))
EXPECTED = ExpectedAnswer(1, "a goal", tuple(SCORES), 4, False)
RIGHT = Prediction.from_json(json.dumps(ANSWER))
ASKED = ExpectedAnswer(1, "asked", (0.1, 0.2, 0.7, 0.1, 0.2, 1.0), 4, False)
OWNER = ExpectedAnswer(2, "owner", tuple(SCORES), 4, False)
LONGER = ExpectedAnswer(3, "longer", tuple(SCORES), 5, False)


def with_head(name: str, answer: Any) -> Prediction:
    """The right prediction with one head's answer replaced."""
    return replace(RIGHT, heads={**RIGHT.heads, name: answer})


def single(label: str, score: float) -> SingleLabel:
    """One label."""
    return SingleLabel((LabelScore(label, score),))


def test_right_answer() -> None:
    """An answer as the expected answer has it, or off by less than the tolerance, has no mismatch."""
    assert find_mismatches(RIGHT, EXPECTED, SERVED) == []
    assert find_mismatches(with_head("topic", single("sport", 0.7009)), EXPECTED, SERVED) == []
    assert find_mismatches(with_head("stars", Regression(3.2525)), EXPECTED, SERVED) == []  # relative above 1


def test_a_price_may_differ_by_a_share_of_its_spread() -> None:
    """Near the center the tolerance is a share of the spread, whatever the unit; worked out by hand."""
    price = HeadSchema("stars", HeadKind.REGRESSION, target_scale=(98_000.0, 27_000.0))
    served = replace(SERVED, heads=(*SERVED.heads[:-1], price))
    expected = replace(EXPECTED, scores=(*SCORES[:-1], 100_000.0))
    assert find_mismatches(with_head("stars", Regression(100_026)), expected, served) == []
    found = find_mismatches(with_head("stars", Regression(100_028)), expected, served)
    assert found == ["stars: value 100028, expected 100000"]
    owner = replace(expected, text="owner")
    assert find_owner(with_head("stars", Regression(100_026)), ASKED, [owner], served, 1e-3) == owner
    assert find_owner(with_head("stars", Regression(100_028)), ASKED, [owner], served, 1e-3) is None


@given(
    score=st.floats(-(2.0**99), 2.0**99, width=32),
    off=st.floats(-(2.0**99), 2.0**99, width=32),
    scale=st.none() | st.tuples(st.floats(-(2.0**99), 2.0**99, width=32), st.floats(2.0**-60, 2.0**60, width=32)),
)
def test_client_and_gate_allow_the_same(score: float, off: float, scale: tuple[float, float] | None) -> None:
    """What the client allows around a regression's value is what the gate allows, apart from half a step of float32."""
    schema = Schema([Head(name="r", kind="regression", target_scale=scale)])
    head = HeadSchema("r", HeadKind.REGRESSION, target_scale=scale)
    answer = np.float32(score + off)
    distance = distances(np.array([[answer]]), np.array([[score]], dtype=np.float32), schema)[0, 0]
    allowed = head.allowed(score, 0.03)
    step = abs(score) * 2.0**-23
    if abs(abs(float(answer) - score) - allowed) > step + 1e-9 * allowed:
        assert (distance <= 0.03) == (abs(float(answer) - score) <= allowed)


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (with_head("topic", single("news", 0.2)), "topic: 'news', expected 'sport'"),
        (with_head("topic", single("sport", 0.702)), "topic: 'sport' scored"),
        (with_head("topic", single("opera", 0.7)), "topic: label 'opera' is not in the schema"),
        (
            with_head("topic", SingleLabel((LabelScore("sport", 0.7), LabelScore("news", 0.2)))),
            "2 labels",
        ),
        (with_head("topic", Regression(1)), "topic: a Regression, expected a single_label"),
        (with_head("mood", MultiLabel(())), "mood: 'happy' is missing"),
        (
            with_head("mood", MultiLabel((LabelScore("happy", 0.9, 0.5), LabelScore("sad", 0.3, 0.4)))),
            "mood: 'sad' is there",
        ),
        (with_head("mood", MultiLabel((LabelScore("happy", 0.9, 0.6),))), "threshold 0.6"),
        (with_head("stars", Regression(3.26)), "stars: value 3.26, expected 3.25"),
        (replace(RIGHT, token_count=5), "token_count 5, expected 4"),
        (replace(RIGHT, truncated=True), "truncated True, expected False"),
        (replace(RIGHT, heads={}), "heads "),
        (Prediction(error="the text is empty or blank"), "an error instead of an answer"),
    ],
)
def test_wrong_answer(prediction: Prediction, words: str) -> None:
    """Every kind of wrong answer is found and described."""
    found = find_mismatches(prediction, EXPECTED, SERVED)
    assert any(words in mismatch for mismatch in found), found


def test_flip_near_a_tie() -> None:
    """Two labels as good as tied may be swapped; the same swap beyond twice the tolerance is a mismatch."""
    flipped = with_head("topic", single("news", 0.4495))
    near = replace(EXPECTED, scores=(0.449, 0.450, 0.101, *SCORES[3:]))
    far = replace(EXPECTED, scores=(0.449, 0.452, 0.099, *SCORES[3:]))
    assert find_mismatches(flipped, near, SERVED) == []
    assert find_mismatches(flipped, far, SERVED) != []
    assert find_mismatches(flipped, far, SERVED, tolerance=0.01) == []


def test_flip_near_a_threshold() -> None:
    """A label within the tolerance of its own threshold may be there or not."""
    both = with_head("mood", MultiLabel((LabelScore("happy", 0.9, 0.5), LabelScore("sad", 0.4002, 0.4))))
    near = replace(EXPECTED, scores=(*SCORES[:4], 0.3995, SCORES[5]))
    assert find_mismatches(both, near, SERVED) == []
    assert find_mismatches(RIGHT, near, SERVED) == []
    above = replace(EXPECTED, scores=(*SCORES[:4], 0.402, SCORES[5]))
    assert "mood: 'sad' is missing at score 0.402000" in find_mismatches(RIGHT, above, SERVED)


def test_taxonomy_is_judged_as_a_path() -> None:
    """In a taxonomy the best path is right, even if a level's best label is not on it; each level has one label."""
    parent_of = {"cat": "animal", "dog": "animal", "oak": "plant"}
    schema = ModelSchema(
        8,
        (
            HeadSchema("kingdom", "single_label", ("animal", "plant")),
            HeadSchema("species", "single_label", ("cat", "dog", "oak"), None, "kingdom", parent_of),
        ),
    )
    # animal is the likelier kingdom, but plant with oak (0.36) is a likelier path than animal with cat (0.055).
    golden = ExpectedAnswer(1, "x", (0.55, 0.45, 0.1, 0.1, 0.8), 4, False)
    plant, animal = single("plant", 0.45), single("animal", 0.55)
    best = Prediction({"kingdom": plant, "species": single("oak", 0.8)}, 4)
    torn = Prediction({"kingdom": animal, "species": single("oak", 0.8)}, 4)
    worse = Prediction({"kingdom": animal, "species": single("cat", 0.1)}, 4)
    assert find_mismatches(best, golden, schema) == []
    assert any("contradicts" in mismatch for mismatch in find_mismatches(torn, golden, schema))
    none = Prediction({"kingdom": plant, "species": SingleLabel(())}, 4)
    two = Prediction({"kingdom": plant, "species": SingleLabel((LabelScore("oak", 0.8), LabelScore("cat", 0.1)))}, 4)
    assert find_mismatches(none, golden, schema) == ["species: 0 labels, expected one"]
    assert find_mismatches(two, golden, schema) == ["species: 2 labels, expected one"]
    assert any("the best has" in mismatch for mismatch in find_mismatches(worse, golden, schema))


def test_the_answer_to_another_text_is_found() -> None:
    """The owner is the text for which the whole answer is right; equal scores with other tokens are not enough."""
    assert find_owner(RIGHT, ASKED, [ASKED, LONGER, OWNER], SERVED, 1e-3) == OWNER


def test_a_wrong_answer_may_be_nobodys() -> None:
    """An answer that is right for no other text, or that is an error, has no owner; the text itself is not an owner."""
    assert find_owner(RIGHT, ASKED, [ASKED, LONGER], SERVED, 1e-3) is None
    assert find_owner(RIGHT, OWNER, [OWNER], SERVED, 1e-3) is None
    odd = replace(RIGHT, heads={**RIGHT.heads, "topic": SingleLabel((LabelScore("opera", 0.7),))})
    assert find_owner(odd, ASKED, [ASKED, OWNER], SERVED, 1e-3) is None
    assert find_owner(Prediction(error="no"), ASKED, [ASKED, OWNER], SERVED, 1e-3) is None


@pytest.mark.parametrize(
    ("bound", "rejected", "words"),
    [
        (0.75, True, ""),
        (0.75, False, "its score is not near reject_below"),
        (0.75, None, "the schema says otherwise"),
        (0.65, False, ""),
        (0.65, True, "its score is not near reject_below"),
        (0.7005, True, ""),
        (0.7005, False, ""),
        (None, False, "the schema says otherwise"),
        (None, None, ""),
    ],
)
def test_a_rejection_is_judged_by_the_expected_score(bound: float | None, rejected: bool | None, words: str) -> None:
    """The expected score is 0.7 and the tolerance 0.001."""
    served = replace(SERVED, heads=(replace(SERVED.heads[0], reject_below=bound), *SERVED.heads[1:]))
    answer = SingleLabel((LabelScore("sport", 0.7),), rejected)
    found = find_mismatches(with_head("topic", answer), EXPECTED, served)
    assert (words in " ".join(found)) if words else (found == [])


def test_a_rejected_level_rejects_the_level_below() -> None:
    """The lower level is sure of itself, and must have no label because the upper one has none."""
    upper = HeadSchema("a", HeadKind.SINGLE_LABEL, ("x", "y"), reject_below=0.7)
    lower = HeadSchema("b", HeadKind.SINGLE_LABEL, ("x1", "y1"), parent="a", parent_of={"x1": "x", "y1": "y"})
    served = ModelSchema(16, (upper, lower))
    expected = ExpectedAnswer(1, "text", (0.6, 0.4, 0.9, 0.1), 1, False)

    def mismatches(of_upper: bool | None, of_lower: bool | None) -> list[str]:
        heads = {
            "a": SingleLabel((LabelScore("x", 0.6),), of_upper),
            "b": SingleLabel((LabelScore("x1", 0.9),), of_lower),
        }
        return find_mismatches(Prediction(heads, 1), expected, served)

    assert mismatches(True, True) == []
    assert len(mismatches(True, False)) == 1
    assert len(mismatches(True, None)) == 1


def test_a_rejection_by_certainty_is_judged_by_the_answers_own() -> None:
    """Its scores are compared with the expected ones as always."""
    topic = replace(SERVED.heads[0], reject_below=0.5, reject_by="certainty")
    served = replace(SERVED, heads=(topic, *SERVED.heads[1:]))
    for certainty, rejected, is_right in ((0.4, True, True), (0.4, False, False), (0.6, True, False)):
        answer = SingleLabel((LabelScore("sport", 0.7),), rejected, certainty)
        assert (find_mismatches(with_head("topic", answer), EXPECTED, served) == []) == is_right
