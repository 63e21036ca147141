"""The keys of a config: where each may stand, and which known key a misspelt one seems to mean."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

SHORTEST_PART = 4  # letters of a key that another key contains: num_train_epochs means epochs


def sections(root: type[BaseModel], place: str = "", is_list: bool = False) -> Iterator[tuple[str, type[BaseModel]]]:
    """The header of each table of a file, such as ``[data]`` or ``[[heads]]``, with its model; the first is empty."""
    yield f"[[{place}]]" if is_list else f"[{place}]" if place else "", root
    for name, field in root.model_fields.items():
        for model, in_list in models_in(field.annotation):
            yield from sections(model, f"{place}.{name}" if place else name, in_list)


def models_in(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models of a type, each with whether it is in a list."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation, in_list
    for inner in get_args(annotation):
        yield from models_in(inner, in_list or get_origin(annotation) is list)


def hint(name: str, model: type[BaseModel], places: Mapping[str, type[BaseModel]]) -> str:
    """What an unknown key of a model seems to mean, as `` (did you mean 'epochs'?)``; empty if nothing is near.

    Args:
        places: the tables of the file, by header.
    """
    elsewhere = {place: other.model_fields for place, other in places.items() if other is not model}
    if exact := [place for place, fields in elsewhere.items() if name in fields]:
        return f" (it goes {' or '.join(map(_into, exact))})"
    if (found := nearest(name, model.model_fields)) is not None:
        return f" (did you mean {found!r}?)"
    for place, fields in elsewhere.items():
        if (found := nearest(name, fields)) is not None:
            return f" (did you mean {found!r}? It goes {_into(place)})"
    return ""


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that a misspelt one seems to mean."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if found := difflib.get_close_matches(plain, known, n=1):
        return found[0]
    contained = (
        other
        for other in known
        if (len(other) >= SHORTEST_PART and other in plain) or (len(plain) >= SHORTEST_PART and plain in other)
    )
    return max(contained, key=len, default=None)


def _into(place: str) -> str:
    return f"into {place}" if place else "to the top of the file, above the first [table]"
