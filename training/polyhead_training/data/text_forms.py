"""Labels in a text that is neither a list nor a dict: markup, hash tags, lines of fastText, bullets, pairs, vectors.

These functions know no head. A text without such a form is no error: they return None.
"""

from __future__ import annotations

import html
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import islice
from typing import Any

from polyhead_rows.spelling import SpellingError, read_spelled
from polyhead_training.data.scalars import are_switches, number_of, share_of

INLINE = {"b", "em", "i", "small", "strong", "sub", "sup", "u"}
"""Tags of HTML that stand within a label, not between labels."""

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")
_TAGS = re.compile(r"(?:<[^<>/!?][^<>/]*>[\s,;|]*)+")
_MARKUP = re.compile(
    r"</\w[^<>]*>|<\w[^<>]*/>|<!--|<!\[CDATA\[|<(?:br|div|hr|li|ol|p|td|tr|ul)\b[^<>]*>", re.IGNORECASE
)
_HASHES = re.compile(r"(?:#[^\W\d_][^\s,;|#]*[\s,;|]*)+|(?:@[^\W\d_][^\s,;|@]*[\s,;|]*)+")
_HASH = re.compile(r"[#@]([^\s,;|#@]+)")
_FASTTEXT = re.compile(r"(?:__label__[^\s,;|]+(?:[ \t]+[\d.]+)?[\s,;|]*)+")
_FASTTEXT_LABEL = re.compile(r"__label__([^\s,;|]+)(?:[ \t]+([\d.]+))?")
_BULLET = re.compile(r"([-*–—])\s+|([•·‣◦▪●])\s*")
_NUMBERED = re.compile(r"(?:^|[\s,;|]+)\(?(\d{1,2}|[a-z])[.)]\s+")
_CHECKED = re.compile("[☐☑☒✓✔✗✘]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f]+")  # some systems write them between values
_PAIR = re.compile(r"(.*[^\s:=>-])\s*(?:=>|->|[:=])\s*(\S+)", re.DOTALL)
_SCORED = re.compile(r"(.*\S)\s*\(([\d.]+%?)\)|(.*\S)\s+([01]?\.\d+)", re.DOTALL)
_LISTED = re.compile(r"(.*\S)\s*,\s*([01](?:\.\d*)?|\.\d+)", re.DOTALL)
_IN_A_ROW = re.compile(
    r"(?<!\S)([^\s:=,;|>-]+)\s*(?:=>|->|[:=])\s*(true|false|yes|no|\d+(?:\.\d*)?|\.\d+)(?:\s+|$)", re.I
)
_SCORED_IN_A_ROW = re.compile(r"(?<![^\s)])([^\s():=,;|]+)\s*\((\d+(?:\.\d*)?|\.\d+)\)\s*")
_ALONE = re.compile(r"true|false|yes|no|[01](?:\.\d*)?|\.\d+|[\d.]+%", re.IGNORECASE)  # the share of the only pair
_QUOTED = r""""(?:[^"\\]|\\.|"")*"|'(?:[^'\\]|\\.)*'|“[^“”]*”|„[^„“”]*[“”]|«[^«»]*»|‘[^‘’]*’|`[^`]*`"""
_ALL_QUOTED = re.compile(rf"(?:{_QUOTED})(?:[\s,;|]+(?:{_QUOTED}))*", re.DOTALL)
_UNKNOWN = {"nan", "null", "none", "na", "n/a"}


class FormError(ValueError):
    """A text has a form that cannot be read; the message says why and begins in the middle of a sentence."""


@dataclass(frozen=True)
class TextForm:
    """What a text holds: labels, or labels with shares.

    Attributes:
        kind: of `polyhead_training.data.cell_notes.SAID`.
    """

    kind: str
    found: list[str] | dict[str, float]


def read_form(text: str) -> TextForm | None:
    """The labels of a text in one of the forms of this file; None if it has none.

    Raises:
        FormError: it has one, but not as a whole.
    """
    line = text.strip()
    if _TAGS.fullmatch(line):
        return TextForm("tags", re.findall(r"<([^<>]+)>", line))
    if "<" in line and _MARKUP.search(line):
        return TextForm("markup", _markup_parts(line))
    if line.startswith("__label__"):
        return _read_fasttext(line)
    if line[:1] in ("#", "@") and _HASHES.fullmatch(line):
        return TextForm("hashes", _HASH.findall(line))
    if len(_CHECKED.findall(line)) > 1:
        raise FormError("it has check marks")
    if _CONTROL.search(line):
        return TextForm("control", _CONTROL.split(line.strip("\0")))
    if (parts := _bulleted(line) or _numbered(line)) is not None:
        return TextForm("bullets", parts)
    pairs = _pairs(line)
    return None if pairs is None else TextForm("pairs", pairs)


def unescaped(text: str) -> str:
    """The text with the characters that its HTML escapes mean: ``&amp;`` is ``&``."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def quoted_parts(text: str) -> list[str] | None:
    """The parts of ``'a', 'b'`` or ``"a"``; None if the text has other parts than quoted ones."""
    if _ALL_QUOTED.fullmatch(text) is None:
        return None
    parts = []
    for part in re.findall(_QUOTED, text):
        try:
            parts.append(read_spelled(part) if part[0] in "\"'" else part[1:-1])
        except SpellingError:
            parts.append(part[1:-1].replace('""', '"'))
    return parts if all(isinstance(part, str) for part in parts) else None


def partly_quoted(text: str, separator: str) -> list[str] | None:
    """The parts of ``"a, b", c`` and of ``a\\, b, c``; None if no separator stands in quotes or behind a backslash."""
    if f"\\{separator}" in text:
        parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
        return [part.replace(f"\\{separator}", separator).strip() for part in parts]
    if separator not in text or not {'"', "'"} & set(text):
        return None
    part = re.compile(rf"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|(.*?))\s*(?:{re.escape(separator)}|$)""", re.DOTALL)
    parts, at, is_needed = [], 0, False
    while at < len(text) and (found := part.match(text, at)) is not None:
        quoted = found[1] if found[1] is not None else found[2]
        is_needed |= quoted is not None and separator in quoted
        parts.append((found[3] if quoted is None else quoted.replace('""', '"')).strip())
        at = found.end()
    return parts if is_needed and len(parts) > 1 else None


def vector_tokens(text: str) -> list[str] | None:
    """The numbers or truth values of ``0 1 0``, ``yes;no;yes`` or ``0-1-0``; None if it is no such text."""
    tokens = re.split(r"[\s,;|]+", text.strip(" ,;|"))
    if len(tokens) == 1:
        tokens = re.split(r"[/:_-]", tokens[0])
        if len(tokens) < 3 or any("." in token for token in tokens):
            return None  # 0-1 is a score, 0.1-0.9 a range
    return tokens if len(tokens) > 1 and are_switches(tokens) else None


class _MarkupReader(HTMLParser):
    """Texts between tags, with the tag that each stands in."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._text = ""
        self._has_ended = False  # an inline tag, and nothing stands behind it yet

    def handle_starttag(self, tag: str, attrs: Sequence[Any]) -> None:
        if tag in INLINE and not self._has_ended:
            return
        self.end_text()
        if tag in INLINE:
            return
        if tag not in ("br", "hr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[Any]) -> None:
        self.end_text()

    def handle_endtag(self, tag: str) -> None:
        if tag in INLINE:
            self._has_ended = True
            return
        self.end_text()
        if tag in self._open:
            del self._open[len(self._open) - 1 - self._open[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        self._has_ended &= not data.strip()
        self._text += data

    def unknown_decl(self, data: str) -> None:
        if data.startswith("CDATA["):
            self.handle_data(data.removeprefix("CDATA["))

    def end_text(self) -> None:
        """Keeps the text up to here, if it is no blank."""
        if self._text.strip(" \t\r\n,;|"):
            self.found.append((self._open[-1] if self._open else "", self._text.strip(" \t\r\n,;|")))
        self._text, self._has_ended = "", False


def _markup_parts(text: str) -> list[str]:
    reader = _MarkupReader()
    reader.feed(text)
    reader.close()
    reader.end_text()
    if not reader.found:
        raise FormError("its markup holds no text")
    if len(tags := sorted({tag or "no tag" for tag, _ in reader.found})) > 1:
        raise FormError(f"its markup holds texts in different tags ({', '.join(tags)}), of which one holds the labels")
    return [part for _, part in reader.found]


def _read_fasttext(text: str) -> TextForm:
    if not _FASTTEXT.fullmatch(text):
        raise FormError("it is a line of fastText with more than labels; its text must stand in a column of its own")
    found = _FASTTEXT_LABEL.findall(text)
    if not any(score for _, score in found):
        return TextForm("fasttext", [label for label, _ in found])
    return TextForm("fasttext", _as_shares([(label, score or "1") for label, score in found]))


def _bulleted(text: str) -> list[str] | None:
    """The parts of ``- a - b``, also on lines of their own."""
    mark = _BULLET.match(text)
    if mark is None:
        return None
    blanks = r"\s+" if mark[1] else r"\s*"
    parts = re.split(rf"(?:^|[\s,;]+){re.escape(mark[1] or mark[2])}{blanks}", text)
    return [part.strip(" \t\r\n,;") for part in parts if part.strip(" \t\r\n,;")] or None


def _numbered(text: str) -> list[str] | None:
    """The parts of ``1. a 2. b``, also on lines of their own; one number alone is none."""
    marks = list(_NUMBERED.finditer(text))
    if len(marks) < 2 or marks[0].start() != 0:
        return None
    found = [mark[1] for mark in marks]
    for wanted in (map(str, range(1, 100)), string.ascii_lowercase):
        if found == list(islice(wanted, len(found))):
            ends = [mark.start() for mark in marks[1:]] + [len(text)]
            return [text[mark.end() : end].strip(" \t\r\n,;") for mark, end in zip(marks, ends, strict=True)]
    return None


def _pairs(text: str) -> dict[str, float] | None:
    """The labels of ``a:1, b:0``, ``a=1 b=0`` or ``a (0.9), b (0.1)`` with their shares."""
    for separator in (",", ";", "|", "&", "\n"):
        parts = [part.strip() for part in text.split(separator) if part.strip()]
        if len(parts) < 2:
            continue
        for form in (_PAIR, _SCORED) if separator == "," else (_PAIR, _SCORED, _LISTED):
            found = [form.fullmatch(part) for part in parts]
            if all(found):
                pairs = [tuple(group for group in match.groups() if group is not None) for match in found if match]
                if not any(mark in name for name, _ in pairs for mark in ":="):
                    return _shares_of(pairs)
    for in_a_row in (_IN_A_ROW, _SCORED_IN_A_ROW):
        found_in_a_row = in_a_row.findall(text)
        if len(found_in_a_row) > 1 and not in_a_row.sub("", text).strip():
            return _shares_of(found_in_a_row)
    single = _PAIR.fullmatch(text)
    if single and not any(mark in single[1] for mark in ":=\n") and _ALONE.fullmatch(single[2]):
        return _as_shares([(single[1], single[2])])
    return None


def _shares_of(pairs: Sequence[tuple[str, ...]]) -> dict[str, float] | None:
    """None if the values are no shares, so that the pairs are labels, such as ``surface:paved``."""
    values = [value for _, value in pairs]
    if all(value.casefold() in _UNKNOWN or (share_of(value) is not None and value not in "xX") for value in values):
        return _as_shares([(name, value) for name, value in pairs])
    are_counts = all(math.isfinite(number_of(value)) for value in values)
    if are_counts and all(name[0].isalpha() for name, _ in pairs):
        raise FormError("it gives each label a number that is no share between 0 and 1")
    return None


def _as_shares(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for name, value in pairs:
        share = share_of(value) or 0.0
        if shares.setdefault(name.strip(), share) != share:
            raise FormError(f"it gives {name.strip()!r} two shares")
    return shares
