"""What callers of a model rely on, and how it changes from one version to the next.

Callers read SCORES by position, answers by the names of heads and labels, and send the fields of the template. A change
either can break such a caller, or is only worth a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from polyhead.checkpoint_files import read_config
from polyhead.errors import CheckpointError, PolyheadError, RepositoryError, SchemaError
from polyhead.schema import MAY_LACK, Head, HeadKind, Schema
from polyhead.template import Template
from polyhead.terminal import say
from polyhead.windows import LongTexts, Windows

MOST_NAMES = 8  # a line names no more; the rest is counted


@dataclass(frozen=True)
class Change:
    """One difference in words; `breaks` says whether a caller of the old version may fail or misread answers."""

    text: str
    breaks: bool = False


@dataclass(frozen=True)
class Interface:
    """Heads with their labels and thresholds, how much of a text is read, and what makes a text of fields."""

    schema: Schema
    max_length: int
    text_template: str | None

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Interface:
        """Reads it from ``config.json``, without the weights.

        Raises:
            CheckpointError: this is not a checkpoint; it says what it is, if that is known.
        """
        path = checkpoint / "config.json"
        config = read_config(checkpoint)
        try:
            return cls._of_json(config["polyhead"])
        except (TypeError, KeyError, ValidationError) as error:
            raise CheckpointError(f"{path}: is not the config of a checkpoint ({error!r})") from error
        except PolyheadError as error:
            raise CheckpointError(f"{path}: {error}") from error

    @classmethod
    def of_schema(cls, document: bytes) -> Interface:
        """Reads it from the wire's SCHEMA.

        Raises:
            SchemaError: it is not what a server of this release sends.
        """
        try:
            return cls._of_json(orjson.loads(document))
        except (TypeError, KeyError, ValidationError, orjson.JSONDecodeError) as error:
            raise SchemaError(f"SCHEMA: is not understood ({error!r})") from error

    @classmethod
    def _of_json(cls, fields: Any) -> Interface:
        if not isinstance(fields, dict):
            raise TypeError(f"must be a table, got {type(fields).__name__}")
        template = fields.get("text_template")
        if not isinstance(fields["max_length"], int) or not isinstance(template, str | None):
            raise TypeError("max_length must be a whole number, and text_template a text or null")
        windows = None if (found := fields.get("long_texts")) is None else LongTexts.model_validate(found)
        read = Windows.of(fields["max_length"], windows).reach  # SCHEMA has this number as its max_length
        return cls(Schema.from_json(fields["heads"], MAY_LACK), read, template)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the template."""
        return () if self.text_template is None else Template(self.text_template).fields


def changes(old: Interface, new: Interface) -> list[Change]:
    """All differences that a caller can notice, in the order of the heads."""
    found = [*_heads(old.schema, new.schema), *_columns(old.schema, new.schema)]
    found += _template(old, new)
    if new.max_length != old.max_length:
        # A shorter length cuts off what the old version read.
        found.append(Change(f"max_length: {old.max_length} → {new.max_length} tokens", new.max_length < old.max_length))
    return found


def check_changes(
    old: Interface, new: Interface, place: str, is_allowed: bool, tell: Callable[[str], None] = say
) -> None:
    """Tells every difference.

    Args:
        place: where `old` is, for the lines.
        is_allowed: whether changes that can break callers are wanted.

    Raises:
        RepositoryError: they are not wanted, and there are some.
    """
    found = changes(old, new)
    for change in found:
        tell(f"{'breaks callers' if change.breaks else 'changes'}: {change.text}")
    breaking = sum(change.breaks for change in found)
    if breaking and not is_allowed:
        raise RepositoryError(
            f"{breaking} of these changes can break callers of {place}; nothing was changed. If all callers are ready "
            "for them, add --allow-schema-change"
        )


def _heads(old: Schema, new: Schema) -> Iterator[Change]:
    before, after = ({head.name: head for head in schema} for schema in (old, new))
    for head in old:
        if head.name in after:
            yield from _head(head, after[head.name])
        else:
            yield Change(f"head {head.name!r} ({_described(head)}) is gone", breaks=True)
    for head in new:
        if head.name not in before:
            yield Change(f"head {head.name!r} ({_described(head)}) is new")


def _head(old: Head, new: Head) -> Iterator[Change]:
    place = f"head {old.name!r}"
    if new.kind != old.kind:
        yield Change(f"{place}: {_described(old)} → {_described(new)}", breaks=True)
        return
    if gone := [label for label in old.labels if label not in new.index_of]:
        yield Change(f"{place}: {_named('label', gone)} gone", breaks=True)
    if added := [label for label in new.labels if label not in old.index_of]:
        yield Change(f"{place}: {_named('label', added)} new")
    kept = [label for label in old.labels if label in new.index_of]
    yield from _thresholds(place, old, new, kept)
    if _bound(new) != _bound(old):
        yield Change(f"{place}: reject_below {_bound(old)} → {_bound(new)}")
    if new.temperature != old.temperature:
        yield Change(f"{place}: temperature {old.temperature:g} → {new.temperature:g}")
    if new.target_scale != old.target_scale:
        yield Change(f"{place}: center and spread of its training targets {_scale(old)} → {_scale(new)}")
    if new.y_range != old.y_range:
        yield Change(f"{place}: range of its values {_range(old)} → {_range(new)}", breaks=True)
    if new.parent != old.parent:
        yield Change(f"{place}: parent {old.parent!r} → {new.parent!r}", breaks=True)
    elif moved := [label for label in kept if _parent_of(old, label) != _parent_of(new, label)]:
        shown = [f"{label}: {_parent_of(old, label)} → {_parent_of(new, label)}" for label in moved]
        yield Change(f"{place}: other parents for {listed(shown, quote=False)}", breaks=True)


def _thresholds(place: str, old: Head, new: Head, kept: Iterable[str]) -> Iterator[Change]:
    if old.thresholds is None or new.thresholds is None:
        return
    pairs = {label: (old.thresholds[old.index_of[label]], new.thresholds[new.index_of[label]]) for label in kept}
    if moved := [f"{label} {was:g} → {now:g}" for label, (was, now) in pairs.items() if was != now]:
        yield Change(f"{place}: thresholds {listed(moved, quote=False)}")


def _columns(old: Schema, new: Schema) -> Iterator[Change]:
    after = {name: position for position, name in enumerate(_column_names(new))}
    moved = [
        (name, position, after[name])
        for position, name in enumerate(_column_names(old))
        if after.get(name, position) != position
    ]
    if moved:
        (head, label), was, now = moved[0]
        shown = f"{head}/{label}" if label else head
        yield Change(
            f"SCORES: {len(moved)} of {old.width} columns move, the first is {shown!r} from position {was} to {now}",
            breaks=True,
        )


def _template(old: Interface, new: Interface) -> Iterator[Change]:
    if new.text_template == old.text_template:
        return
    if old.text_template is None or new.text_template is None:
        yield Change(f"text_template: {_shown(old.text_template)} → {_shown(new.text_template)}", breaks=True)
        return
    if gone := [field for field in old.fields if field not in new.fields]:
        yield Change(f"text_template: {_named('field', gone)} gone", breaks=True)
    if added := [field for field in new.fields if field not in old.fields]:
        yield Change(f"text_template: {_named('field', added)} new", breaks=True)
    yield Change(f"text_template: {_shown(old.text_template)} → {_shown(new.text_template)}")


def _column_names(schema: Schema) -> list[tuple[str, str]]:
    # Pairs, because a label may contain '/' or be called like the value of a regression.
    return [(head.name, label) for head in schema for label in (head.labels or ("",))]


def _described(head: Head) -> str:
    return head.kind if head.kind == HeadKind.REGRESSION else f"{head.kind}, {len(head.labels)} labels"


def _bound(head: Head) -> str:
    by = "" if head.reject_by == "score" else f" (by {head.reject_by})"
    return "none" if head.reject_below is None else f"{head.reject_below:g}{by}"


def _scale(head: Head) -> str:
    return "unknown" if head.target_scale is None else "{:g} ± {:g}".format(*head.target_scale)


def _range(head: Head) -> str:
    return "unbounded" if head.y_range is None else "{:g} to {:g}".format(*head.y_range)


def _parent_of(head: Head, label: str) -> str | None:
    return (head.parent_of or {}).get(label)


def _named(word: str, names: list[str]) -> str:
    return f"{word} {listed(names)} is" if len(names) == 1 else f"{word}s {listed(names)} are"


def listed(names: list[str], quote: bool = True) -> str:
    """The names in one line; if there are many, the first of them and how many more."""
    shown = ", ".join(repr(name) if quote else name for name in names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


def _shown(template: str | None) -> str:
    return "none" if template is None else repr(template)
