"""Lists and dicts in a cell: of labels, of shares, and as annotation tools export them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyhead_rows.spelling import shortened
from polyhead_training.data.cell_notes import CellNotes
from polyhead_training.data.scalars import is_nothing, share_of
from polyhead_training.errors import BadRowError

DEEPEST = 6  # lists and dicts within each other

WRAPPERS = (
    "choices", "cats", "labels", "label", "values", "value", "tags", "names", "name", "result", "rating", "number",
)  # fmt: skip
"""The only key of a dict that holds the labels, such as ``{"choices": ["a", "b"]}`` of Label Studio."""

ENTRY_KEYS = ("value", "label", "labels", "choices", "name", "result")
"""Where an object in a list has its label, such as ``[{"id": 28, "name": "Action"}]``."""

SCORES = ("score", "probability", "confidence")
OF_PEOPLE = {"status", "user_id", "was_cancelled", "completed_by"}  # an answer of one annotator
SUBMITTED = ("submitted", "validated", "none", "")


def is_structure(value: Any) -> bool:
    """Whether a value is a list or a dict of any kind."""
    return isinstance(value, list | tuple | set | frozenset | dict)


def parts_of(
    value: Any, place: str, notes: CellNotes, at_least: float, depth: int = 0
) -> list[Any] | dict[str, float] | None:
    """The parts of a list, or the labels of a dict with their shares; None if nothing is known.

    Args:
        place: for messages.
        at_least: entries with a lower score are left out.

    Raises:
        BadRowError: it holds anything else, or annotators disagree.
    """
    if depth > DEEPEST:
        raise BadRowError(f"{place}: is nested deeper than {DEEPEST} levels, got {shortened(repr(value))}")
    if isinstance(value, dict):
        return _of_dict(value, place, notes, at_least, depth)
    parts = sorted(value, key=repr) if isinstance(value, set | frozenset) else list(value)
    if parts and all(isinstance(part, dict) for part in parts):
        return _of_entries(parts, place, notes, at_least, depth)
    if parts and all(_is_pair(part) for part in parts):  # a map of Arrow, or [('a', 0.9), ('b', 0.1)]
        return _of_dict(dict(parts), place, notes, at_least, depth)
    if nested := [part for part in parts if is_structure(part)]:
        shown = shortened(repr(nested[0]))
        raise BadRowError(f"{place}: a list of labels must hold texts or numbers, got {shown} in it")
    return parts


def _of_dict(
    value: dict[Any, Any], place: str, notes: CellNotes, at_least: float, depth: int
) -> list[Any] | dict[str, float] | None:
    if OF_PEOPLE & value.keys():
        return _of_entries([value], place, notes, at_least, depth)
    if len(value) == 1:
        ((name, inner),) = value.items()
        if name in WRAPPERS:
            if is_structure(inner):
                return parts_of(inner, place, notes, at_least, depth + 1)
            return None if is_nothing(inner) else [inner]
    if any(isinstance(value.get(key), str) and share_of(value[key]) is None for key in ENTRY_KEYS):
        return _of_entries([value], place, notes, at_least, depth)  # {"label": "a", "score": 0.9}
    shares: dict[str, float] = {}
    for name, given in value.items():
        share = share_of(given)
        if share is None and not is_nothing(given):
            raise BadRowError(
                f"{place}: a dict must give each label 0 or 1, true or false, or a share between them, or have the "
                f"labels in one of {', '.join(WRAPPERS)}; got {name!r}: {shortened(repr(given))}"
            )
        shares[str(name)] = share or 0.0
    if value and all(is_nothing(given) for given in value.values()):
        notes.add("hollow", place, value)
        return None
    return shares


def _of_entries(
    entries: Sequence[dict[Any, Any]], place: str, notes: CellNotes, at_least: float, depth: int
) -> list[Any] | None:
    """Answers of annotators (Argilla, Label Studio), or objects that have a name each."""
    found: list[list[Any]] = []
    for entry in entries:
        status = str(entry.get("status") or "").rpartition(".")[2].casefold()
        if status not in SUBMITTED or entry.get("was_cancelled") is True:
            notes.add("unsubmitted", place)
            continue
        key = next((key for key in ENTRY_KEYS if key in entry), None)
        if key is None:
            raise BadRowError(
                f"{place}: an object must have its label in one of {', '.join(ENTRY_KEYS)}, got "
                f"{shortened(repr(entry))}"
            )
        if score := next((share_of(entry[name]) for name in SCORES if name in entry), None):
            if score < 1:
                notes.add("share", place, entry)
            if score < at_least:
                continue
        elif score is not None:
            continue  # a score of 0
        inner = entry[key]
        parts = parts_of(inner, place, notes, at_least, depth + 1) if is_structure(inner) else [inner]
        if isinstance(parts, dict):
            parts = [name for name, share in parts.items() if share >= at_least]
        if parts is not None:
            found.append(parts)
    if any(OF_PEOPLE & entry.keys() for entry in entries):
        if any(set(map(str, parts)) != set(map(str, found[0])) for parts in found):
            raise BadRowError(
                f"{place}: annotators disagree: {shortened(repr(found))}; give one answer per row, or leave such rows "
                'out with bad_rows = "skip"'
            )
        return found[0] if found else None
    return [part for parts in found for part in parts]


def _is_pair(part: Any) -> bool:
    return (
        isinstance(part, list | tuple)
        and len(part) == 2
        and isinstance(part[0], str)
        and isinstance(part[1], bool | int | float)
    )
