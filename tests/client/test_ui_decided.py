"""What the page says would be answered at a threshold: handwritten scores, and the answers that follow from them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from polyhead_client import BadResponseError, ModelSchema, Prediction, UnknownNameError
from polyhead_client.schema import HeadKind, HeadSchema
from polyhead_client.ui.decided import Bar, DecidedHead, certainty, decide, difference, in_words, paths

ONE, ANY, NUMBER = HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL, HeadKind.REGRESSION
SECTION = HeadSchema("section", ONE, ("computers", "sport"), reject_below=0.6)
GROUP = HeadSchema(
    "group", ONE, ("laptops", "phones", "tennis"), parent="section",
    parent_of={"laptops": "computers", "phones": "computers", "tennis": "sport"},
)  # fmt: skip
MOOD = HeadSchema("mood", ANY, ("happy", "sad", "calm"), thresholds=(0.5, 0.25, 0.75))
STARS = HeadSchema("stars", NUMBER)
SCHEMA = ModelSchema(64, (GROUP, SECTION, MOOD, STARS))  # the level below stands before the level above
SCORES = np.array([0.25, 0.375, 0.375, 0.625, 0.375, 0.5, 0.125, 0.5, 3.5], dtype=np.float32)


def prediction(section: str = "computers", group: str = "phones", **heads: Any) -> Prediction:
    """An answer whose taxonomy has this path; its other parts are not read."""
    said = {
        "group": {"kind": ONE, "labels": [group], "scores": [0.375]},
        "section": {"kind": ONE, "label": section, "labels": [section], "scores": [0.625]},
        "mood": {"kind": ANY, "labels": [], "scores": [], "thresholds": []},
        "stars": {"kind": NUMBER, "value": 3.5},
    }
    return Prediction.from_json(json.dumps({"heads": said | heads, "token_count": 3, "truncated": False}))


def answers(bounds: dict[str, float]) -> dict[str, str]:
    """The answer of each head in words."""
    return {name: in_words(head) for name, head in decide(SCHEMA, prediction(), SCORES, bounds).items()}


def test_the_models_own_thresholds() -> None:
    """happy has exactly its threshold 0.5, sad 0.125 of 0.25, calm 0.5 of 0.75; 0.625 reaches the bound 0.6."""
    decided = decide(SCHEMA, prediction(), SCORES, {})
    assert answers({}) == {"group": "phones", "section": "computers", "mood": "happy", "stars": "3.5"}
    assert list(decided) == ["group", "section", "mood", "stars"]
    assert [(bar.label, bar.score, bar.threshold, bar.chosen) for bar in decided["mood"].bars] == [
        ("happy", 0.5, 0.5, True), ("calm", 0.5, 0.75, False), ("sad", 0.125, 0.25, False),
    ]  # fmt: skip
    # phones is on the most probable path, so it stands first, although tennis has the same score.
    assert [bar.label for bar in decided["group"].bars] == ["phones", "tennis", "laptops"]
    assert not any(head.moved for head in decided.values())


@pytest.mark.parametrize(
    ("threshold", "labels"),
    [(0.0, "happy, calm, sad"), (0.125, "happy, calm, sad"), (0.13, "happy, calm"), (0.5, "happy, calm"),
     (0.505, "no label"), (1.0, "no label")],
)  # fmt: skip
def test_one_threshold_for_all_labels(threshold: float, labels: str) -> None:
    """A label is answered if its score is at least the threshold; other heads stay as they are."""
    assert answers({"mood": threshold}) == answers({}) | {"mood": labels}


@pytest.mark.parametrize(("bound", "is_rejected"), [(0.0, False), (0.625, False), (0.63, True), (1.0, True)])
def test_a_rejected_level_rejects_those_below(bound: float, is_rejected: bool) -> None:
    """The bound of a level is compared with its own score, and a path ends where a level has no label."""
    decided = decide(SCHEMA, prediction(), SCORES, {"section": bound})
    assert (decided["section"].rejected, decided["group"].rejected) == (is_rejected, is_rejected)
    assert decided["group"].above == ("section" if is_rejected else None)
    assert decided["section"].moved
    expected = [("section", None), ("group", None)] if is_rejected else [("section", "computers"), ("group", "phones")]
    assert paths(SCHEMA, decided) == [expected]


def test_the_level_below_may_be_rejected_alone() -> None:
    """The level above keeps its label."""
    decided = decide(SCHEMA, prediction(), SCORES, {"group": 0.4})
    assert paths(SCHEMA, decided) == [[("section", "computers"), ("group", None)]]
    assert decided["group"].above is None
    assert decided["group"].labels == ()


def test_certainty() -> None:
    """One label with the whole score has certainty 1, n alike ones 1/n; 0.64 and 0.36 have 1/1.4² = 0.510204."""
    assert certainty(np.array([1.0, 0.0])) == 1.0
    assert certainty(np.array([0.25] * 4)) == 0.25
    assert certainty(np.array([0.64, 0.36])) == 0.510204
    head = HeadSchema("intent", ONE, ("a", "b"), reject_by="certainty")
    schema, scores = ModelSchema(64, (head,)), np.array([0.64, 0.36], dtype=np.float32)
    said = Prediction.from_json(b'{"heads": {"intent": {"kind": "single_label", "labels": ["a"], "scores": [0.64]}}, '
                                b'"token_count": 1, "truncated": false}')  # fmt: skip
    found = [decide(schema, said, scores, {"intent": bound})["intent"].rejected for bound in (0.51, 0.52)]
    assert found == [False, True]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (ModelSchema(64, (SECTION, STARS)), prediction()),
        (SCHEMA, prediction(section="cooking")),
        (ModelSchema(64, (*SCHEMA.heads[:3], HeadSchema("price", NUMBER))), prediction()),
    ],
)
def test_another_models_answer_is_an_error(schema: ModelSchema, said: Prediction) -> None:
    """If the model was replaced between two requests, nothing is shown."""
    with pytest.raises((BadResponseError, UnknownNameError)):
        decide(schema, said, SCORES, {})


def head(kind: HeadKind, labels: str = "", value: float | None = None) -> DecidedHead:
    """A head that answers these labels."""
    scale = (0.0, 1.0) if kind == NUMBER else None
    return DecidedHead(
        HeadSchema("head", kind, tuple("abc"), target_scale=scale), tuple(Bar(one, 0.5, chosen=True) for one in labels),
        value,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (head(ONE, "a"), head(ONE, "a"), None),
        (head(ONE, "a"), head(ONE, "b"), "a → b"),
        (head(ONE, "a"), head(ONE), "a → no label"),
        (head(ONE), head(ONE), None),
        (head(ANY, "ab"), head(ANY, "ba"), None),
        (head(ANY, "ab"), head(ANY, "bc"), "only the first answers a; only the second answers c"),
        (head(ANY), head(ANY, "bc"), "only the second answers b, c"),
        (head(NUMBER, value=2.0), head(NUMBER, value=2.015), None),
        (head(NUMBER, value=2.0), head(NUMBER, value=2.5), "2 → 2.5 (+0.5)"),
        (head(ONE, "a"), head(ANY, "a"), "single_label → multi_label"),
        (head(ONE, "a"), None, "only the first model has this head"),
        (None, head(ONE, "a"), "only the second model has this head"),
    ],
)
def test_differences(left: DecidedHead | None, right: DecidedHead | None, said: str | None) -> None:
    """Labels are compared as sets, and numbers with the tolerance of both servers: 0.01 of a value near 2, twice."""
    assert difference(left, right, 0.01) == said
