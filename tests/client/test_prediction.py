"""Reading predictions from the wire."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead_client import (
    BadResponseError,
    LabelScore,
    ModelSchema,
    MultiLabel,
    Prediction,
    Regression,
    SingleLabel,
)
from tests.client.fake_triton import ANSWER, SCHEMA

# A busy machine must not fail these tests.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

share = st.floats(0, 1)
labels = st.lists(st.builds(LabelScore, st.text(), share), min_size=1).map(tuple)
chosen = st.lists(st.builds(LabelScore, st.text(), share, share)).map(tuple)
numbers = st.floats(allow_nan=False, allow_infinity=False)
heads = st.one_of(
    st.builds(SingleLabel, labels, st.sampled_from([None, False, True]), st.none() | share),
    st.builds(MultiLabel, chosen),
    st.builds(Regression, numbers),
)
predictions = st.one_of(
    st.builds(Prediction, st.dictionaries(st.text(), heads), st.integers(0), st.booleans()),
    st.builds(lambda error: Prediction(error=error), st.text()),
)


@relaxed
@given(predictions)
def test_round_trip(prediction: Prediction) -> None:
    """A prediction that is written and read again is the same, for any labels and scores."""
    assert Prediction.from_json(json.dumps(prediction.to_json())) == prediction


@relaxed
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["heads", "kind", "labels", "scores", "value", "token_count", "truncated", "error"]),
                inner,
            )
        ),
    )
)
def test_anything_else_is_one_error(value: Any) -> None:
    """Any JSON is either read or refused with a BadResponseError."""
    with suppress(BadResponseError):
        Prediction.from_json(json.dumps(value))


def edited(path: str, value: Any) -> str:
    """The good answer with one value replaced, or removed if the value is ``...``."""
    answer: Any = copy.deepcopy(ANSWER)
    *parents, last = path.split("/")
    place = answer
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(answer)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("heads", ..., "missing field 'heads'"),
        ("heads", [], "heads must be dict, got list"),
        ("token_count", True, "token_count must be int, got bool"),
        ("truncated", 0, "truncated must be bool"),
        ("heads/topic", 3, "heads.topic must be an object"),
        ("heads/topic/kind", "ordinal", "too old"),
        ("heads/topic/labels", [], "differ in length"),
        ("heads/topic/labels", [7], "must be strings"),
        ("heads/topic/scores", ["high"], "finite numbers"),
        ("heads/topic/scores", [float("nan")], "finite numbers"),
        ("heads/mood/thresholds", ..., "missing field 'thresholds'"),
        ("heads/mood/thresholds", [None], "thresholds must hold finite numbers"),
        ("heads/stars/value", None, "heads.stars.value"),
    ],
)
def test_broken_answers_name_the_place(path: str, value: Any, words: str) -> None:
    """An answer that breaks the contract is refused, and the message names the place."""
    with pytest.raises(BadResponseError, match=words):
        Prediction.from_json(edited(path, value))


def test_fields_of_a_newer_server_are_ignored() -> None:
    """Unknown fields are ignored."""
    assert Prediction.from_json(edited("latency_ms", 3)) == Prediction.from_json(json.dumps(ANSWER))


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"3"])
def test_no_json(data: bytes) -> None:
    """Data that is not a JSON object is refused."""
    with pytest.raises(BadResponseError):
        Prediction.from_json(data)
    with pytest.raises(BadResponseError):
        ModelSchema.from_json(data)


@pytest.mark.parametrize(
    ("head", "field", "value"),
    [
        (0, "name", ["topic"]),
        (0, "labels", [1, 2, 3]),
        (0, "labels", 5),
        (0, "parent", {"a": 1}),
        (0, "parent_of", {"news": 1}),
        (0, "parent_of", ["news"]),
        (0, "reject_below", float("nan")),
        (0, "reject_below", 10**400),
        (1, "thresholds", [float("nan"), 0.5]),
        (1, "thresholds", ["x", 0.5]),
        (2, "target_scale", [float("inf"), 1]),
        (None, "max_length", 1e400),
        (None, "tolerance", float("nan")),
        (None, "text_template", ["{a}"]),
        (None, "precision", 16),
    ],
)
def test_a_schema_with_other_types_is_refused(head: int | None, field: str, value: Any) -> None:
    """Here, and not where a program first uses it."""
    fields: Any = copy.deepcopy(SCHEMA)
    (fields if head is None else fields["heads"][head])[field] = value
    with pytest.raises(BadResponseError, match="SCHEMA breaks the wire contract"):
        ModelSchema.from_json(json.dumps(fields))


def test_schema_with_a_scale() -> None:
    """Center and spread of a regression's targets are kept; servers of older releases do not name them."""
    fields: Any = copy.deepcopy(SCHEMA)
    assert ModelSchema.from_json(json.dumps(fields)).heads[2].target_scale is None
    fields["heads"][2]["target_scale"] = [98000, 27000]
    assert ModelSchema.from_json(json.dumps(fields)).heads[2].target_scale == (98_000.0, 27_000.0)
    fields["heads"][2]["target_scale"] = [98000]
    with pytest.raises(BadResponseError, match="SCHEMA breaks the wire contract"):
        ModelSchema.from_json(json.dumps(fields))


def test_schema_with_a_taxonomy() -> None:
    """Parents and the map to their labels are kept; unknown kinds and missing thresholds are refused."""
    fields: Any = copy.deepcopy(SCHEMA)
    fields["heads"][0] |= {"parent": "area", "parent_of": {"news": "a", "sport": "b", "science": "a"}}
    head = ModelSchema.from_json(json.dumps(fields)).heads[0]
    assert head.parent == "area"
    assert head.parent_of == {"news": "a", "sport": "b", "science": "a"}
    for name, value in (("kind", "ordinal"), ("thresholds", [0.5])):
        broken = copy.deepcopy(fields)
        broken["heads"][1][name] = value
        with pytest.raises(BadResponseError, match=name):
            ModelSchema.from_json(json.dumps(broken))


def topic(**fields: Any) -> SingleLabel:
    """A single_label answer with these fields on the wire."""
    wire = copy.deepcopy(ANSWER)
    wire["heads"]["topic"] |= fields
    found = Prediction.from_json(json.dumps(wire))["topic"]
    assert isinstance(found, SingleLabel)
    return found


def test_a_rejected_answer_has_no_label() -> None:
    """Its best label and score are still there; without a label on the wire nothing is rejected."""
    rejected, kept, plain = topic(label=None), topic(label="sport"), topic()
    assert (rejected.label, rejected.score, rejected.rejected) == (None, 0.7, True)
    assert rejected.top == (LabelScore("sport", 0.7),)
    assert (kept.label, kept.rejected) == ("sport", False)
    assert (plain.label, plain.rejected, plain.certainty) == ("sport", None, None)
    assert topic(label=None, certainty=0.25).certainty == 0.25
    with pytest.raises(BadResponseError, match=r"topic\.certainty"):
        topic(certainty="much")


@pytest.mark.parametrize("label", ["news", 3, ["sport"]])
def test_another_label_than_the_best_is_refused(label: object) -> None:
    """The label is the first of labels, or null."""
    with pytest.raises(BadResponseError, match=r"topic\.label must be the first of labels or null"):
        topic(label=label)


def test_the_schema_names_the_bound() -> None:
    """Servers of older releases have none."""
    assert ModelSchema.from_json(json.dumps(SCHEMA))["topic"].reject_below is None
    fields = copy.deepcopy(SCHEMA)
    fields["heads"][0] |= {"reject_below": 0.75, "reject_by": "certainty"}
    head = ModelSchema.from_json(json.dumps(fields))["topic"]
    assert (head.reject_below, head.reject_by) == (0.75, "certainty")
