"""Scores and answers, compared with independent arithmetic."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyhead.decode import (
    DecodeOptions,
    are_answers,
    best_paths,
    certainty,
    decode,
    decode_all,
    over_threshold,
    rejected,
    to_scores,
)
from polyhead.errors import OptionError
from polyhead.schema import Head, Schema
from tests.tiny import SCHEMA

TAXONOMY = Schema(
    [
        Head(name="area", kind="single_label", labels=("a", "b")),
        Head(
            name="field",
            kind="single_label",
            labels=("a1", "a2", "b1"),
            parent="area",
            parent_of={"a1": "a", "a2": "a", "b1": "b"},
        ),
        Head(
            name="topic",
            kind="single_label",
            labels=("a1x", "a2x", "a2y", "b1x", "b1y"),
            parent="field",
            parent_of={"a1x": "a1", "a2x": "a2", "a2y": "a2", "b1x": "b1", "b1y": "b1"},
        ),
    ]
)


def logits_of(schema: Schema) -> st.SearchStrategy[np.ndarray]:
    """Finite logits, including extreme ones."""
    return hnp.arrays(np.float32, (1, schema.width), elements=st.floats(-1e4, 1e4, width=32))


def test_scores_are_calibrated_softmax_and_sigmoid() -> None:
    """Softmax and sigmoid of logits over temperature, and a regression's logit unchanged; expected values by hand."""
    schema = Schema(
        [
            Head(name="s", kind="single_label", labels=("x", "y"), temperature=2.0),
            Head(name="m", kind="multi_label", labels=("z",), temperature=0.5),
            Head(name="r", kind="regression"),
        ]
    )
    scores = to_scores(np.array([[2.0, 0.0, 1.0, -7.5]], dtype=np.float32), schema)[0]
    expected = [math.e / (math.e + 1), 1 / (math.e + 1), 1 / (1 + math.exp(-2)), -7.5]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_regression_answers_in_the_unit_of_its_targets() -> None:
    """Center plus spread times the logit, clipped to the range; worked out by hand."""
    price = {"kind": "regression", "target_scale": (98_000.0, 27_000.0)}
    schema = Schema([Head(name="p", **price), Head(name="bounded", **price, y_range=(50_000.0, 120_000.0))])
    logits = np.array([[0.0, 0.0], [1.5, 1.5], [-2.0, -2.0]], dtype=np.float32)
    assert to_scores(logits, schema).tolist() == [[98_000, 98_000], [138_500, 120_000], [44_000, 50_000]]


def test_a_scale_costs_no_digit() -> None:
    """The answer is rounded once, to float32, however large the center is."""
    schema = Schema([Head(name="time", kind="regression", target_scale=(1_700_000_000.0, 86_400.0))])
    logit = np.float32(0.7)
    expected = np.float32(1_700_000_000 + 86_400 * float(logit))
    assert to_scores(np.array([[logit]]), schema)[0, 0] == expected


def test_a_value_beyond_float32_is_no_answer() -> None:
    """Center and spread are numbers of float32, but what they make of a logit may not be one."""
    schema = Schema([Head(name="r", kind="regression", target_scale=(3e38, 3e38))])
    assert are_answers(to_scores(np.array([[0.0], [1.0]], dtype=np.float32), schema)).tolist() == [True, False]


@given(logits=logits_of(SCHEMA))
def test_scores_are_probabilities(logits: np.ndarray) -> None:
    """Whatever the logits, single-label scores sum to one and multi-label scores lie in [0, 1]."""
    scores = to_scores(logits, SCHEMA)[0]
    assert scores[SCHEMA.columns["topic"]].sum() == pytest.approx(1, abs=1e-5)
    mood = scores[SCHEMA.columns["mood"]]
    assert ((mood >= 0) & (mood <= 1)).all()


@given(
    logits=logits_of(SCHEMA),
    top_k=st.one_of(st.none(), st.integers(1, 9)),
    threshold=st.one_of(st.none(), st.floats(0, 1)),
)
def test_answers_follow_the_options(logits: np.ndarray, top_k: int | None, threshold: float | None) -> None:
    """Single-label names top_k labels, multi-label exactly those at or over their threshold; both best first."""
    scores = to_scores(logits, SCHEMA)[0]
    answer = decode(scores, SCHEMA, DecodeOptions(top_k=top_k, threshold=threshold))
    topic, mood = answer["topic"], answer["mood"]
    assert len(topic["labels"]) == min(top_k or 1, 3)
    assert topic["scores"][0] == max(scores[SCHEMA.columns["topic"]])
    for head in (topic, mood):
        assert head["scores"] == sorted(head["scores"], reverse=True)
    by_label = dict(zip(SCHEMA["mood"].labels, scores[SCHEMA.columns["mood"]], strict=True))
    over = {label for label, score in by_label.items() if float(score) >= (0.5 if threshold is None else threshold)}
    assert set(mood["labels"]) <= over
    assert len(mood["labels"]) == min(len(over), top_k or len(over))


def test_many_texts_are_answered_at_once() -> None:
    """Each text has its own answer; of equal scores the label with the lower index comes first, and top_k cuts."""
    scores = np.array(
        [[0.25, 0.5, 0.25, 0.6, 0.9, 0.6, 0.1, 2.5], [0.4, 0.4, 0.2, 0.1, 0.2, 0.3, 0.4, -1], [0, 0, 1, 1, 1, 1, 1, 0]],
        dtype=np.float32,
    )
    found = decode_all(scores, SCHEMA, DecodeOptions(top_k=2))
    assert [answer["topic"]["labels"] for answer in found] == [
        ["sport", "news"],
        ["news", "sport"],
        ["science", "news"],
    ]
    assert [answer["topic"]["scores"] for answer in found] == [[0.5, 0.25], [np.float32(0.4)] * 2, [1, 0]]
    assert [answer["mood"]["labels"] for answer in found] == [["sad", "happy"], [], ["happy", "sad"]]
    assert found[0]["mood"]["thresholds"] == [0.5, 0.5]
    assert [answer["stars"] for answer in found] == [{"kind": "regression", "value": v} for v in (2.5, -1.0, 0.0)]
    for options in (DecodeOptions(), DecodeOptions(top_k=2), DecodeOptions(threshold=0.5, reject_below=0.5)):
        assert decode_all(scores[:0], SCHEMA, options) == []


@given(data=st.data(), top_k=st.one_of(st.none(), st.integers(1, 9)), bound=st.one_of(st.none(), st.floats(0, 1)))
def test_a_text_among_many_is_answered_as_alone(data: st.DataObject, top_k: int | None, bound: float | None) -> None:
    """In order and in every value, with a taxonomy and with heads that reject, also by certainty."""
    by = {"area": "score", "field": "certainty", "topic": "score"}
    heads = [head.model_copy(update={"reject_by": by[head.name], "reject_below": 0.4}) for head in TAXONOMY]
    for schema in (SCHEMA, TAXONOMY, Schema(heads)):
        rows = data.draw(st.lists(logits_of(schema), min_size=1, max_size=5))
        scores = to_scores(np.concatenate(rows), schema)
        options = DecodeOptions(top_k=top_k, reject_below=bound)
        alone = [decode(row, schema, options) for row in scores]
        assert json.dumps(decode_all(scores, schema, options)) == json.dumps(alone)


@given(logits=logits_of(TAXONOMY))
def test_a_taxonomy_is_never_contradicted(logits: np.ndarray) -> None:
    """The answer is a consistent path, and no other consistent path is more probable; all are tried."""
    scores = to_scores(logits, TAXONOMY)[0]
    answer = decode(scores, TAXONOMY, DecodeOptions())
    area, field, topic = (answer[name]["labels"][0] for name in ("area", "field", "topic"))
    assert TAXONOMY["topic"].parent_of[topic] == field  # type: ignore[index]
    assert TAXONOMY["field"].parent_of[field] == area  # type: ignore[index]

    def log_probability(path: tuple[int, ...]) -> float:
        floored = np.log(np.maximum(scores.astype(np.float64), 1e-300))
        return sum(floored[TAXONOMY.columns[head.name]][index] for head, index in zip(TAXONOMY, path, strict=True))

    def is_consistent(path: tuple[int, ...]) -> bool:
        labels = {head.name: head.labels[index] for head, index in zip(TAXONOMY, path, strict=True)}
        return all(head.parent_of[labels[head.name]] == labels[head.parent] for head in TAXONOMY if head.parent)  # type: ignore[index]

    paths = [path for path in itertools.product(range(2), range(3), range(5)) if is_consistent(path)]
    chosen = best_paths(scores, TAXONOMY)
    best = max(map(log_probability, paths))
    assert log_probability((chosen["area"], chosen["field"], chosen["topic"])) == pytest.approx(best)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 0},
        {"top_k": "3"},
        {"top_k": 1.5},
        {"top_k": True},
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"topk": 3},
        {"k" * 200: 3},
    ],
)
def test_bad_options_are_named(parameters: dict[str, object]) -> None:
    """Unknown parameters and values out of range are errors of one line that says what is allowed."""
    with pytest.raises(OptionError, match=rf"{next(iter(parameters))}.*allowed are top_k, threshold"):
        DecodeOptions.from_parameters(parameters)


def test_a_parameter_with_a_long_name_gets_a_short_answer() -> None:
    """gRPC sends messages in its headers, which have a limit: a longer one would look like an overloaded server."""
    with pytest.raises(OptionError, match=r"allowed are top_k, threshold") as caught:
        DecodeOptions.from_parameters({"k" * 1_000_000: 3, "\n" * 1_000_000: 4})
    assert len(str(caught.value)) < 1_500


def test_a_score_just_under_its_threshold_is_not_over_it() -> None:
    """0.7 as float32 is less than 0.7; every NumPy must compare them like this."""
    assert not over_threshold(np.array([0.7], dtype=np.float32), [0.7])[0]
    assert over_threshold(np.array([0.5], dtype=np.float32), [0.5])[0]


SCORES = np.array([0.55, 0.45, 0.6, 0.3, 0.1, 0.5, 0.1, 0.1, 0.2, 0.1], dtype=np.float32)  # of TAXONOMY: a, a1, a1x


def rejecting(**bounds: float) -> Schema:
    """The taxonomy, in which these heads reject."""
    return Schema([head.model_copy(update={"reject_below": bounds.get(head.name)}) for head in TAXONOMY])


def labels_of(schema: Schema, **options: float) -> dict[str, str | None]:
    """The label of each head that may reject."""
    answers = decode(SCORES, schema, DecodeOptions.from_parameters(options))
    return {name: answer["label"] for name, answer in answers.items() if "label" in answer}


def test_a_score_below_the_bound_is_answered_without_a_label() -> None:
    """The label is None, and labels and scores are those of the answer that was rejected."""
    head = Head(name="s", kind="single_label", labels=("x", "y", "z"), reject_below=0.5)
    scores = np.array([0.2, 0.45, 0.35], dtype=np.float32)
    answer = decode(scores, Schema([head]), DecodeOptions(top_k=3))["s"]
    assert answer["label"] is None
    assert (answer["labels"], answer["scores"]) == (["y", "z", "x"], scores[[1, 2, 0]].tolist())
    sure = decode(np.array([0.25, 0.5, 0.25], dtype=np.float32), Schema([head]), DecodeOptions())["s"]
    assert sure == {"kind": "single_label", "label": "y", "labels": ["y"], "scores": [0.5]}


def test_without_a_bound_an_answer_is_as_before() -> None:
    """Neither head nor request has one: there is no label beside labels."""
    assert decode(SCORES, TAXONOMY, DecodeOptions())["area"].keys() == {"kind", "labels", "scores"}


def test_a_path_stops_at_the_level_that_is_rejected() -> None:
    """The levels above keep their labels; the levels below have none, however sure they are."""
    assert labels_of(rejecting(area=0.5, topic=0.7)) == {"area": "a", "field": "a1", "topic": None}
    assert labels_of(rejecting(field=0.61)) == {"field": None, "topic": None}
    assert labels_of(rejecting(area=0.56, topic=0.1)) == {"area": None, "field": None, "topic": None}


def test_a_request_replaces_the_bounds_of_all_heads() -> None:
    """0 rejects nothing; it also works for heads without a bound."""
    schema = rejecting(area=0.5, topic=0.7)
    assert labels_of(schema, reject_below=0) == {"area": "a", "field": "a1", "topic": "a1x"}
    assert labels_of(schema, reject_below=0.58) == {"area": None, "field": None, "topic": None}
    assert labels_of(TAXONOMY, reject_below=0.55) == {"area": "a", "field": "a1", "topic": None}


def test_the_bound_is_compared_with_the_answered_score() -> None:
    """In a taxonomy the answer is a label of the best path, which need not have the head's highest score."""
    scores = np.array([0.6, 0.4, 0.35, 0.25, 0.4, 0.9, 0.025, 0.025, 0.025, 0.025], dtype=np.float32)
    answers = decode(scores, rejecting(field=0.38), DecodeOptions())
    assert (answers["field"]["labels"], answers["field"]["label"]) == (["a1"], None)


def test_several_texts_are_rejected_as_each_alone() -> None:
    """The evaluation decides about all rows at once, as serving decides about one."""
    random = np.random.default_rng(0)
    scores = to_scores(random.normal(size=(50, TAXONOMY.width)).astype(np.float32), TAXONOMY)
    schema = rejecting(area=0.6, topic=0.4)
    answers = [decode(row, schema, DecodeOptions()) for row in scores]
    best = {head.name: [answer[head.name]["scores"][0] for answer in answers] for head in schema}
    for name, found in rejected(best, schema).items():
        assert found.tolist() == [answer[name]["label"] is None for answer in answers]
        assert 0 < found.sum() < 50


@pytest.mark.parametrize("bound", [-0.1, 1.1, "0.5", None, True])
def test_a_bound_of_a_request_is_a_number_within_0_and_1(bound: object) -> None:
    """None is the default in Python, and no request can send it."""
    if bound is None:
        assert DecodeOptions.from_parameters({"reject_below": None}).reject_below is None
        return
    with pytest.raises(OptionError, match="reject_below"):
        DecodeOptions.from_parameters({"reject_below": bound})


def test_certainty_is_one_over_the_labels_that_scores_are_spread_over() -> None:
    """One label has all, four share alike, or (0.8 + 0.6)² = 1.96 labels; worked out by hand."""
    rows = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.64, 0.36, 0, 0]], dtype=np.float32)
    assert certainty(rows).tolist() == [1.0, 0.25, round(1 / 1.96, 6)]


def test_a_head_may_reject_by_certainty() -> None:
    """The best label has 0.64 in both rows; only what the other labels have decides. The answer says the certainty."""
    head = Head(name="s", kind="single_label", labels=("x", "y", "z"), reject_below=0.5, reject_by="certainty")
    two, three = (np.array(row, dtype=np.float32) for row in ([0.64, 0.36, 0], [0.64, 0.18, 0.18]))
    sure, unsure = (decode(row, Schema([head]), DecodeOptions())["s"] for row in (two, three))
    assert (sure["label"], sure["certainty"]) == ("x", 0.510204)
    assert unsure["label"] is None
    assert unsure["certainty"] == pytest.approx(1 / (0.8 + 2 * math.sqrt(0.18)) ** 2, abs=1e-6)
    assert decode(three, Schema([head]), DecodeOptions(reject_below=0.3))["s"]["label"] == "x"
