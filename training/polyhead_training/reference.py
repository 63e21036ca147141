"""The reference of all config keys as Markdown, made from the models that validate them.

A key's meaning is its entry under ``Attributes:`` in the docstring of its model. An example is the field's ``examples``
or, without them, a value that differs from the default.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from polyhead_training.config_keys import models_in, sections

HEADER = "| key | value | default | example | meaning |\n|---|---|---|---|---|\n"
PLAIN = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path", Any: "any value"}
BOUNDS = (
    (annotated_types.Gt, "gt", "above {}"),
    (annotated_types.Ge, "ge", "at least {}"),
    (annotated_types.Lt, "lt", "below {}"),
    (annotated_types.Le, "le", "at most {}"),
    (annotated_types.MinLen, "min_length", "at least {} long"),
)


def config_reference(root: type[BaseModel]) -> str:
    """A heading and a table of keys per table of the file."""
    return "\n".join(_section(place, model) for place, model in sections(root))


def _section(place: str, model: type[BaseModel]) -> str:
    title = f"`{place}`" if place else "Top of the file"
    summary = markdown(inspect.cleandoc(model.__doc__ or "").partition("\n\nAttributes:")[0])
    known = meanings(model)
    rows = [
        f"| {' | '.join(_cells(name, field, known.get(name, '')))} |\n"
        for name, field in model.model_fields.items()
        if not any(models_in(field.annotation))
    ]
    return f"### {title}\n\n{summary}\n\n{HEADER}{''.join(rows)}"


def _cells(name: str, field: FieldInfo, meaning: str) -> list[str]:
    default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else "" if default is None else _code(toml(default))
    value = " ".join([words(field.annotation), *_bounds(field)])
    return [_code(name), value, shown, _code(f"{name} = {toml(example(field))}"), _sentence(meaning)]


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """The entries under ``Attributes:`` in the docstrings of a model and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        _, _, entries = text.partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", f"\n{entries}"):
            names, separator, meaning = " ".join(entry.split()).partition(": ")
            if separator:
                found |= dict.fromkeys(names.split(", "), meaning)
    return found


def example(field: FieldInfo) -> Any:
    """A value of the field.

    Raises:
        ValueError: the field has no examples, and none can be derived.
    """
    if field.examples:
        return field.examples[0]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if choices := [choice for choice in _choices(field.annotation) if choice != default]:
        return choices[0]
    if default in (None, [], {}, ()):
        raise ValueError("needs examples")
    return default


def words(annotation: Any) -> str:
    """The type of a value as a reader of TOML calls it."""
    if isinstance(annotation, type) and annotation in PLAIN:
        return PLAIN[annotation]
    if annotation is Any:
        return PLAIN[Any]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return _either([_code(toml(str(member))) for member in annotation])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(inner[0])
    if origin is Literal:
        return _either([_code(toml(choice)) for choice in inner])
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        return f"list of {words(inner[0])}s"
    if origin is tuple:
        return f"list of {len(inner)} {words(inner[0])}s"
    if origin is dict:
        return "table" if inner[1] is Any else f"table of {words(inner[1])}"
    return _either([words(choice) for choice in inner if choice is not NoneType])


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Mapping():
            pairs = (f"{_toml_key(name)} = {toml(inner)}" for name, inner in value.items())
            return f"{{ {', '.join(pairs)} }}" if value else "{}"
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
    text = str(value)
    return f"'{text}'" if "\\" in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def markdown(text: str) -> str:
    """A docstring as Markdown on one line per paragraph."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(re.sub(r"``(.+?)``", lambda code: _code(code[1]), part) for part in paragraphs)


def _sentence(text: str) -> str:
    return markdown(text[:1].upper() + text[1:])


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _code(text: str) -> str:
    """A code span that may stand in a table."""
    return f"`{text}`".replace("|", r"\|")


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _bounds(field: FieldInfo) -> Iterator[str]:
    for kind, attribute, text in BOUNDS:
        for bound in field.metadata:
            if isinstance(bound, kind):
                yield text.format(f"{getattr(bound, attribute):,}")


def _choices(annotation: Any) -> list[Any]:
    """The values of a Literal, of an enumeration or of a bool."""
    if annotation is bool:
        return [True, False]
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, StrEnum):
        return [str(member) for member in annotation]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for inner in get_args(annotation) for choice in _choices(inner)] if _is_union(annotation) else []


def _is_union(annotation: Any) -> bool:
    return bool(get_args(annotation)) and get_origin(annotation) not in (list, tuple, dict, Literal)
