"""The text template: makes one text of the fields of a row. Training, evaluation, scoring and serving render with it.

``{Title}`` is a field. ``[[{Title}. ]]`` is an optional part: it is left out if all of its fields are empty. For the
characters themselves write ``{{``, ``}}``, ``[[[[`` and ``]]]]``; a single ``[`` or ``]`` needs no escape.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined] # not in the type stubs
from typing import Any

from polyhead.errors import TemplateError

BLANKS = " \t\n\r"  # of JSON. Python's strip() removes others too, and not the same ones of str and of bytes
SPACE = re.compile(f"[{BLANKS}]*")
SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null|NaN|-?Infinity")
LONG_OBJECT = 16_384  # characters, or bytes. Longer objects are read pair by pair
MOST_USES = 4  # of one field, because a text takes the memory of its field so many times
TOKEN = re.compile(r"\{\{|\}\}|\{|\}|\[{2,}|\]{2,}")


class FieldError(Exception):
    """The fields of one row make no text; the message is the reason."""


@dataclass(frozen=True)
class TemplatePart:
    """Literals and fields in turn: ``literals[i]`` stands before ``fields[i]``, the last literal at the end."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]
    is_optional: bool

    def render(self, texts: Mapping[str, str]) -> str:
        """The part with these texts in the place of its fields; empty if it is optional and they are all blank."""
        values = [texts[field] for field in self.fields]
        if self.is_optional and not any(value.strip() for value in values):
            return ""
        return "".join(text for pair in zip(self.literals, [*values, ""], strict=True) for text in pair)


@dataclass(frozen=True)
class TextAsSent:
    """One element of TEXT after rendering.

    Attributes:
        is_plain: whether it came as plain text, which is used as it is.
        error: why its fields make no text; None if they do.
    """

    text: str | bytes
    is_plain: bool = False
    error: str | None = None


class Template:
    """A parsed template.

    Attributes:
        source: the template as it was written.
        fields: the names of its fields, each once, in their order.

    Raises:
        TemplateError: it is malformed; the message names the position of the character, counted from 1.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.parts = _parse(source)
        self.fields = tuple(dict.fromkeys(field for part in self.parts for field in part.fields))
        if not self.fields:
            raise TemplateError("names no field; write its name in braces, as {title}")
        field, uses = Counter(field for part in self.parts for field in part.fields).most_common(1)[0]
        if uses > MOST_USES:
            raise TemplateError(
                f"names the field {_shortened(field)} {uses} times; at most {MOST_USES} times are allowed"
            )

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text of a row. A field that is missing is empty; the row may have other fields too.

        Returns:
            An empty text if all fields are empty, because the template's own characters make no text.

        Raises:
            FieldError: a field holds a list or an object.
        """
        texts = {name: _field_text(fields, name) or "" for name in self.fields}
        if not any(text.strip() for text in texts.values()):
            return ""
        return "".join(part.render(texts) for part in self.parts)

    def read(self, element: str | bytes) -> TextAsSent:
        """Renders one element of TEXT: a JSON object of the fields. Anything else is plain text and used as it is."""
        try:
            pairs = json_object(element) if len(element) <= LONG_OBJECT else self._long_object(element)
            if pairs is None:
                return TextAsSent(element, is_plain=True)
            return TextAsSent(self.render(self._checked(pairs)))
        except FieldError as error:
            return TextAsSent("", error=str(error))

    def _long_object(self, element: str | bytes) -> list[tuple[str, Any]] | None:
        """As `json_object`, but reads no further than the first pair that these fields cannot have.

        Whole megabytes of lists or of small pairs would take seconds, in which the model process does nothing else.
        """
        try:
            text = element.decode("utf-8") if isinstance(element, bytes) else element
            found: list[tuple[str, Any]] = []
            left = set(self.fields)
            for name, value in _flat_pairs(text.strip(BLANKS)):
                found.append((name, value))
                if name not in left:
                    return found  # `_checked` says what is wrong with it
                left.remove(name)
            return found
        except ValueError:  # it is no JSON, or not UTF-8
            return None

    def _checked(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        declared = f"this model's fields are {', '.join(map(repr, self.fields))}"
        for name, value in pairs:
            if name not in self.fields:
                raise FieldError(f"unknown field {_shortened(name)}; {declared}")
            if name in fields:
                raise FieldError(f"field {name!r} occurs twice")
            fields[name] = value
        if not fields:
            raise FieldError(f"the JSON object names no field; {declared}")
        return fields


def fields_json(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    """The named fields of a row as one element of TEXT, which renders to the same text as the row.

    A missing field and NaN become null. Lone surrogates stay as JSON escapes, so the server refuses that text alone.

    Raises:
        FieldError: a field holds a list or an object.
    """
    spelled = {name: _field_text(fields, name) for name in names}
    text = json.dumps(spelled, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(spelled)
    return text


def json_object(element: str | bytes) -> list[tuple[str, Any]] | None:
    """The names and values of a JSON object, doubled names included; None if the element is anything else.

    NaN counts as JSON here, because ``json.dumps`` of Python writes it for a missing number.
    """
    try:
        text = element.decode("utf-8") if isinstance(element, bytes) else element
        if not text.lstrip(BLANKS).startswith("{"):
            return None
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    return [(name, dict(value) if isinstance(value, _Pairs) else value) for name, value in found]


def _flat_pairs(text: str) -> Iterator[tuple[str, Any]]:
    """The pairs of a JSON object without lists or objects in it, one by one.

    Raises:
        FieldError: a value is a list or an object.
        ValueError: it is no JSON object.
    """
    at = _expect(text, 0, "{")
    if text[at:] == "}":
        return
    while True:
        name, at = scanstring(text, _expect(text, at, '"'), True)
        at = _expect(text, _space(text, at), ":")
        match text[at : at + 1]:
            case '"':
                value, at = scanstring(text, at + 1, True)
            case "[" | "{" as opened:
                _field_text({name: [] if opened == "[" else {}}, name)  # raises
            case _:
                scalar = SCALAR.match(text, at)
                if scalar is None:
                    raise ValueError("a value is malformed")
                value, at = json.loads(scalar.group()), scalar.end()
        yield name, value
        at = _space(text, at)
        if text[at : at + 1] == "}":
            if at + 1 != len(text):
                raise ValueError("there is more after its end")
            return
        at = _expect(text, at, ",")


def _expect(text: str, at: int, character: str) -> int:
    """The place after this character, and after blanks unless it opens a string."""
    if text[at : at + 1] != character:
        raise ValueError(f"{character} is missing")
    return at + 1 if character == '"' else _space(text, at + 1)


def _space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return at if found is None else found.end()


def as_text(value: Any) -> str | None:
    """A cell as text. The same number or truth value gives the same text in every format.

    A missing cell is None. NaN also means missing, because data frames write it. Bytes that are not UTF-8 become lone
    surrogates.
    """
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return None
        case float() if value.is_integer():
            return str(int(value))
        case bytes():
            return value.decode("utf-8", "surrogateescape")
        case _:
            return str(value)


def _field_text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if isinstance(value, Mapping | list | tuple | set):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        raise FieldError(f"field {name!r} must be a text, a number, true, false or null, got {kind}")
    return as_text(value)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, told apart from a JSON list."""


def _shortened(name: str, most: int = 60) -> str:
    return repr(name if len(name) <= most else f"{name[:most]}…")


def _parse(source: str) -> list[TemplatePart]:
    parser = _Parser(source)
    place = 0
    while match := TOKEN.search(source, place):
        parser.literal += source[place : match.start()]
        place = parser.take(match.group(), match.start())
    parser.literal += source[place:]
    if parser.opened is not None:
        raise _error(parser.opened, "'[[' is not closed by ']]'")
    parser.end_part()
    return parser.parts


class _Parser:
    """The parts so far, and the part that is being read.

    Attributes:
        opened: where the optional part began that is being read; None outside of one.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.parts: list[TemplatePart] = []
        self.literals: list[str] = []
        self.fields: list[str] = []
        self.literal = ""
        self.opened: int | None = None

    def take(self, token: str, place: int) -> int:
        """Reads a token at its place; returns the place behind it."""
        end = place + len(token)
        if token in ("{{", "}}"):
            self.literal += token[0]
        elif token == "}":
            raise _error(place, "'}' without '{' before it; write '}}' for the character itself")
        elif token == "{":
            end = self._take_field(place)
        elif token[0] == "[":
            escaped, opens = divmod(len(token), 4)
            if opens > 1:  # the outermost two open the part
                self._open(place)
            self.literal += "[[" * escaped + "[" * (opens % 2)
        else:
            escaped, closes = divmod(len(token), 4)
            self.literal += "]]" * escaped + "]" * (closes % 2)
            if closes > 1:  # the outermost two close the part
                self._close(end - 2)
        return end

    def end_part(self) -> None:
        """Ends the part that is being read."""
        part = TemplatePart((*self.literals, self.literal), tuple(self.fields), self.opened is not None)
        if part.fields or part.literals != ("",):
            self.parts.append(part)
        self.literals, self.fields, self.literal = [], [], ""

    def _take_field(self, place: int) -> int:
        end = self.source.find("}", place)
        if end < 0:
            raise _error(place, "expected '}' after '{'; write '{{' for the character itself")
        name = self.source[place + 1 : end]
        if not name or any(mark in name for mark in "{!:"):
            raise _error(place, "braces must hold a column's name and nothing else")
        self.literals.append(self.literal)
        self.fields.append(name)
        self.literal = ""
        return end + 1

    def _open(self, place: int) -> None:
        if self.opened is not None:
            raise _error(place, "an optional part cannot hold another; write '[[[[' for the characters themselves")
        self.end_part()
        self.opened = place

    def _close(self, place: int) -> None:
        if self.opened is None:
            raise _error(place, "']]' without '[[' before it; write ']]]]' for the characters themselves")
        if not self.fields:
            raise _error(self.opened, "an optional part must name a field, as [[{title}. ]]")
        self.end_part()
        self.opened = None


def _error(place: int, message: str) -> TemplateError:
    return TemplateError(f"character {place + 1}: {message}")
