"""What changes for callers from version to version: each difference is a line, and what can break them is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from polyhead.errors import CheckpointError, RepositoryError, SchemaError
from polyhead.interface import Interface, changes, check_changes
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from tests.tiny import MAX_LENGTH, SCHEMA

HEADS: dict[str, dict[str, Any]] = {
    "area": {"kind": "single_label", "labels": ("rain", "ball")},
    "topic": {
        "kind": "single_label", "labels": ("wet", "snow", "goal"), "parent": "area",
        "parent_of": {"wet": "rain", "snow": "rain", "goal": "ball"},
    },
    "mood": {"kind": "multi_label", "labels": ("happy", "sad"), "thresholds": (0.5, 0.4)},
    "stars": {"kind": "regression", "y_range": (1.0, 5.0)},
    "tags": {"kind": "multi_label", "labels": ("a", "b")},
}  # fmt: skip


def interface(heads: dict[str, dict[str, Any]], max_length: int = 128, template: str | None = "{a}: {b}") -> Interface:
    """An interface of these heads."""
    return Interface(Schema([Head(name=name, **fields) for name, fields in heads.items()]), max_length, template)


OLD = interface(HEADS)


def with_head(name: str, **fields: Any) -> Interface:
    """The old interface with other fields of one head."""
    return interface({**HEADS, name: {**HEADS[name], **fields}})


def reordered(*names: str) -> Interface:
    """The old heads in another order, or only some of them."""
    return interface({name: HEADS[name] for name in names})


BREAKING: dict[str, tuple[Interface, list[str]]] = {
    "head removed at the end": (
        reordered("area", "topic", "mood", "stars"), ["head 'tags' (multi_label, 2 labels) is gone"],
    ),
    "head removed in the middle": (
        reordered("area", "topic", "stars", "tags"),
        ["head 'mood' (multi_label, 2 labels) is gone",
         "SCORES: 3 of 10 columns move, the first is 'stars' from position 7 to 5"],
    ),
    "head renamed": (
        interface({**{name: HEADS[name] for name in ("area", "topic", "mood", "stars")}, "words": HEADS["tags"]}),
        ["head 'tags' (multi_label, 2 labels) is gone", "head 'words' (multi_label, 2 labels) is new"],
    ),
    "heads in another order": (
        reordered("area", "topic", "mood", "tags", "stars"),
        ["SCORES: 3 of 10 columns move, the first is 'stars' from position 7 to 9"],
    ),
    "head added in front": (
        interface({"first": HEADS["tags"], **HEADS}),
        ["head 'first' (multi_label, 2 labels) is new",
         "SCORES: 10 of 10 columns move, the first is 'area/rain' from position 0 to 2"],
    ),
    "label removed": (with_head("tags", labels=("a",), thresholds=None), ["head 'tags': label 'b' is gone"]),
    "label renamed": (
        with_head("tags", labels=("a", "c")), ["head 'tags': label 'b' is gone", "head 'tags': label 'c' is new"],
    ),
    "labels in another order": (
        with_head("tags", labels=("b", "a")),
        ["SCORES: 2 of 10 columns move, the first is 'tags/a' from position 8 to 9"],
    ),
    "label added in the middle": (
        with_head("mood", labels=("happy", "sad", "calm"), thresholds=(0.5, 0.4, 0.5)),
        ["head 'mood': label 'calm' is new", "SCORES: 3 of 10 columns move, the first is 'stars' from position 7 to 8"],
    ),
    "kind": (
        with_head("tags", kind="single_label"), ["head 'tags': multi_label, 2 labels → single_label, 2 labels"],
    ),
    "range": (with_head("stars", y_range=(0.0, 1.0)), ["head 'stars': range of its values 1 to 5 → 0 to 1"]),
    "no range": (with_head("stars", y_range=None), ["head 'stars': range of its values 1 to 5 → unbounded"]),
    "other parents": (
        with_head("topic", parent_of={"wet": "rain", "snow": "ball", "goal": "ball"}),
        ["head 'topic': other parents for snow: rain → ball"],
    ),
    "no parent": (
        with_head("topic", parent=None, parent_of=None), ["head 'topic': parent 'area' → None"],
    ),
    "no template": (interface(HEADS, template=None), ["text_template: '{a}: {b}' → none"]),
    "field removed": (
        interface(HEADS, template="{a}"), ["text_template: field 'b' is gone", "text_template: '{a}: {b}' → '{a}'"],
    ),
    "field added": (
        interface(HEADS, template="{a}: {b} {c}"),
        ["text_template: field 'c' is new", "text_template: '{a}: {b}' → '{a}: {b} {c}'"],
    ),
    "shorter texts": (interface(HEADS, max_length=64), ["max_length: 128 → 64 tokens"]),
}  # fmt: skip

HARMLESS: dict[str, tuple[Interface, list[str]]] = {
    "nothing": (OLD, []),
    "head added at the end": (
        interface({**HEADS, "last": HEADS["stars"]}), ["head 'last' (regression) is new"],
    ),
    "label added at the end": (
        with_head("tags", labels=("a", "b", "c")), ["head 'tags': label 'c' is new"],
    ),
    "thresholds": (with_head("mood", thresholds=(0.5, 0.99)), ["head 'mood': thresholds sad 0.4 → 0.99"]),
    "temperature": (with_head("area", temperature=2.5), ["head 'area': temperature 1 → 2.5"]),
    "rejection": (
        with_head("topic", reject_below=0.35), ["head 'topic': reject_below none → 0.35"],
    ),
    "rejection by certainty": (
        with_head("topic", reject_below=0.35, reject_by="certainty"),
        ["head 'topic': reject_below none → 0.35 (by certainty)"],
    ),
    "scale in training": (
        with_head("stars", target_scale=(3.5, 1.25)),
        ["head 'stars': center and spread of its training targets unknown → 3.5 ± 1.25"],
    ),
    "weight in training": (with_head("area", weight=3.0), []),
    "template with the same fields": (
        interface(HEADS, template="{a} - {b}"), ["text_template: '{a}: {b}' → '{a} - {b}'"],
    ),
    "longer texts": (interface(HEADS, max_length=256), ["max_length: 128 → 256 tokens"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKING)
def test_what_can_break_callers(name: str) -> None:
    """Each such change is told and refused, unless it is allowed."""
    new, lines = BREAKING[name]
    assert [change.text for change in changes(OLD, new)] == lines
    told: list[str] = []
    with pytest.raises(RepositoryError, match=r"callers of the live server; .*--allow-schema-change"):
        check_changes(OLD, new, "the live server", is_allowed=False, tell=told.append)
    assert len(told) == len(lines)
    assert any(line.startswith("breaks callers: ") for line in told)
    check_changes(OLD, new, "the live server", is_allowed=True, tell=told.append)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_breaks_nobody(name: str) -> None:
    """Additions that leave all columns in their place, and other thresholds, are told and not refused."""
    new, lines = HARMLESS[name]
    told: list[str] = []
    check_changes(OLD, new, "the live server", is_allowed=False, tell=told.append)
    assert told == [f"changes: {line}" for line in lines]


def test_long_lists_are_cut() -> None:
    """A line names a few labels and counts the rest."""
    many = tuple(f"label {number}" for number in range(1000))
    old, new = (interface({"tags": {"kind": "multi_label", "labels": labels}}) for labels in (many, many[:2]))
    (change,) = changes(old, new)
    assert change.text.endswith("'label 9' and 990 more are gone")


def test_it_is_the_same_from_checkpoint_and_from_wire(base_checkpoint: Path) -> None:
    """A version on disk and the SCHEMA of its server give the same interface."""
    found = Interface.of_checkpoint(base_checkpoint)
    assert found == Interface(SCHEMA, MAX_LENGTH, None)
    document = Predictor.load(base_checkpoint).schema_json()
    assert Interface.of_schema(document) == found
    older = orjson.loads(document)  # a server of an older release
    for head in older["heads"]:
        del head["target_scale"]
    assert Interface.of_schema(orjson.dumps(older)) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("polyhead"),
        lambda config: config["polyhead"].pop("heads"),
        lambda config: config["polyhead"].update(heads={}),
        lambda config: config["polyhead"].update(max_length="long"),
        lambda config: config["polyhead"].update(text_template=["a"]),
        lambda config: config.update(polyhead=[]),
    ],
)
def test_what_is_no_checkpoint(damaged: Callable[[], Path], change: Callable[[dict[str, Any]], Any]) -> None:
    """A config without readable heads is refused with its place; so is a SCHEMA."""
    path = damaged() / "config.json"
    config = orjson.loads(path.read_bytes())
    change(config)
    path.write_bytes(orjson.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        Interface.of_checkpoint(path.parent)
    with pytest.raises(SchemaError):
        Interface.of_schema(orjson.dumps(config.get("polyhead")))
