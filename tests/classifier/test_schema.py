"""A schema that contradicts itself is refused; the error names the field."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.errors import SchemaError
from polyhead.schema import MAY_LACK, Head, Schema

FIELDS: dict[str, Any] = Head(name="topic", kind="single_label", labels=("a", "b")).model_dump(mode="json")
LEAF: dict[str, Any] = FIELDS | {
    "name": "leaf",
    "labels": ["a1", "a2", "b1"],
    "parent": "topic",
    "parent_of": {"a1": "a", "a2": "a", "b1": "b"},
}


def test_json_round_trip_is_exact() -> None:
    """`from_json` is the inverse of `to_json`."""
    schema = Schema.from_json([FIELDS, LEAF])
    assert Schema.from_json(schema.to_json()) == schema


def test_columns_stand_side_by_side() -> None:
    """Column names are head/label in the schema's order, and head/value for a regression."""
    schema = Schema([Head(name="t", kind="multi_label", labels=("x", "y")), Head(name="r", kind="regression")])
    assert schema.column_names() == ["t/x", "t/y", "r/value"]
    assert schema.columns == {"t": slice(0, 2), "r": slice(2, 3)}
    assert schema["t"].thresholds == (0.5, 0.5)


@pytest.mark.parametrize("field", list(Head.model_fields))
def test_a_missing_field_is_named(field: str) -> None:
    """Every field of a head must be present; the error names the missing one."""
    fields = {name: value for name, value in FIELDS.items() if name != field}
    with pytest.raises(SchemaError, match=f"heads.0: missing field '{field}'"):
        Schema.from_json([fields])


def test_a_head_of_an_older_release_has_no_target_scale() -> None:
    """It may lack this field, if the reader allows it, and no other."""
    fields = {name: value for name, value in FIELDS.items() if name != "target_scale"}
    assert Schema.from_json([fields], MAY_LACK)["topic"].target_scale is None
    del fields["weight"]
    with pytest.raises(SchemaError, match="missing field 'weight'"):
        Schema.from_json([fields], MAY_LACK)


@pytest.mark.parametrize("bound", [0, 0.4, 1.0])
def test_a_single_label_head_may_reject(bound: float) -> None:
    """A bound within [0, 1]; heads of older releases have none."""
    assert Schema.from_json([FIELDS | {"reject_below": bound}])["topic"].reject_below == bound
    fields = {name: value for name, value in FIELDS.items() if name != "reject_below"}
    assert Schema.from_json([fields], MAY_LACK)["topic"].reject_below is None
    with pytest.raises(SchemaError, match="missing field 'reject_below'"):
        Schema.from_json([fields])


@pytest.mark.parametrize("bound", [-0.1, 1.1, "0.5", True])
def test_a_bound_that_rejects_all_or_nothing_is_refused(bound: object) -> None:
    """It must be a number within [0, 1]."""
    with pytest.raises(SchemaError, match="reject_below"):
        Schema.from_json([FIELDS | {"reject_below": bound}])


def test_other_heads_reject_nothing() -> None:
    """A multi_label head has thresholds, and a regression answers a number."""
    with pytest.raises(ValueError, match="only single_label heads have a reject_below"):
        Head(name="tags", kind="multi_label", labels=("a",), reject_below=0.5)
    with pytest.raises(ValueError, match="only single_label heads have a reject_below"):
        Head(name="stars", kind="regression", reject_below=0.5)


@pytest.mark.parametrize(
    "scale", [[0, 0], [0, -1], [1e39, 1], [0, 1e39], [0], [0, 1, 2], ["0", 1], [0, True], [float("nan"), 1], 5]
)
def test_a_scale_is_center_and_spread(scale: Any) -> None:
    """Two finite numbers of float32, the spread above 0; anything else is refused in one line that names the field."""
    price = FIELDS | {"name": "price", "kind": "regression", "labels": []}
    assert Schema.from_json([price | {"target_scale": [98_000, 0.5]}])["price"].target_scale == (98_000, 0.5)
    with pytest.raises(SchemaError, match="target_scale") as caught:
        Schema.from_json([price | {"target_scale": scale}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour: unknown field"),
        ({"kind": "many"}, "kind: Input should be .*'single_label'.*got 'many'"),
        ({"labels": []}, "needs at least 2 labels"),
        ({"labels": ["a", "a"]}, "unique.*'a'"),
        ({"labels": ["a", "b\n"]}, "single lines"),
        ({"name": "a/b"}, "name: .*got 'a/b'"),
        ({"thresholds": [0.5, 0.5]}, "only multi_label"),
        ({"kind": "multi_label", "thresholds": [0.5]}, r"a threshold per label \(2\), got 1"),
        ({"kind": "multi_label", "thresholds": [0.5, 2]}, r"\[0, 1\]"),
        ({"kind": "regression"}, "a regression has no labels"),
        ({"target_scale": [0, 1]}, "only regression heads have a target_scale"),
        ({"temperature": 0}, "temperature"),
        ({"weight": float("nan")}, "weight"),
        ({"parent": "other"}, "give both parent and parent_of"),
    ],
)
def test_a_contradiction_is_named(change: dict[str, Any], message: str) -> None:
    """A wrong field is an error of one line with the field, the value and what is allowed."""
    with pytest.raises(SchemaError, match=message) as caught:
        Schema.from_json([FIELDS | change])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": "nobody"}, "must be one of the single_label heads"),
        ({"parent_of": {"a1": "a", "a2": "a"}}, "map each label and nothing else"),
        ({"parent_of": {"a1": "a", "a2": "a", "b1": "c"}}, "'topic' lacks.*'c'"),
        ({"parent_of": {"a1": "a", "a2": "a", "b1": "a"}}, "needs a child.*'b'"),
    ],
)
def test_a_broken_taxonomy_is_named(change: dict[str, Any], message: str) -> None:
    """A taxonomy that names a head or label that does not exist, or leaves one out, is refused."""
    with pytest.raises(SchemaError, match=message):
        Schema.from_json([FIELDS, LEAF | change])


def test_a_cycle_of_parents_is_refused() -> None:
    """Two heads that are each other's parent are refused."""
    first = FIELDS | {"parent": "other", "parent_of": {"a": "c", "b": "d"}}
    second = FIELDS | {"name": "other", "labels": ["c", "d"], "parent": "topic", "parent_of": {"c": "a", "d": "b"}}
    with pytest.raises(SchemaError, match="cycle"):
        Schema.from_json([first, second])


def test_two_heads_of_one_name_are_refused() -> None:
    """Names must be unique, and a schema needs a head."""
    with pytest.raises(SchemaError, match="unique"):
        Schema.from_json([FIELDS, FIELDS])
    with pytest.raises(SchemaError, match="at least one head"):
        Schema.from_json([])
