"""What a text spells: lists, sets, dicts and arrays, as JSON, Python, NumPy, Scala, SQL, YAML and PHP write them.

Nothing is evaluated. A text that begins with a bracket or a brace is read in full, or it is an error that says why.
"""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

DEEPEST = 12  # brackets within brackets
SHOWN = 60  # characters of a text in a message

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WORDS: dict[str, Any] = {
    "true": True, "false": False, "True": True, "False": False, "np.True_": True, "np.False_": False,
    "None": None, "null": None, "nan": None, "NaN": None, "NaT": None, "<NA>": None, "np.nan": None,
}  # fmt: skip
_LISTS = (
    r"array|numpy\.array|np\.array|list|tuple|set|frozenset|deque|tensor|torch\.tensor|Index|dict_keys|dict_values|"
    r"List|Set|Seq|Array|Vector|ArrayBuffer|ArraySeq|WrappedArray|Some|Optional"
)
_DICTS = "dict|OrderedDict|Counter|defaultdict|Map|HashMap|ImmutableMap|mappingproxy"
_SCALARS = r"(?:np|numpy)\.\w+|Decimal"
_CALL = re.compile(rf"({_LISTS}|{_DICTS}|{_SCALARS})\(")
_KEYWORD = re.compile(r"\s*\w+\s*=(?!>)")
_FACTORY = re.compile(r"\s*<(class|function)[^<>]*>\s*,")  # of a defaultdict
_PREFIX = re.compile(r"[bBuU](?=['\"])")
_QUOTED_LIST = re.compile(r"[\"']\s*[\[{]")
_BYTES = re.compile(r"b'[^']*'|b\"[^\"]*\"")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_WRAPPED = re.compile(r"[A-Za-z_%][\w.]*(\[.*\]|\{.*\})", re.DOTALL)  # map[a:1], Optional[a], Set{a}
_PHP_ARRAY = re.compile(r"(?:array|Array)\s*\((\s*|.*=>.*)\)", re.DOTALL)
_PHP_KEY = re.compile(r"(?:^|\s)\[([^\[\]]*)\] =>[ \t]?")  # as print_r writes it
_PHP_DUMP = re.compile(r"(?:array|object)\(.*\)\s*\{.*\}|[aO]:\d+:.*\{.*\}", re.DOTALL)  # var_dump, serialize
_SERIES = re.compile(r"\bdtype: \w+\s*$")  # pandas prints a series so


class SpellingError(ValueError):
    """A text begins like a list or a dict but does not go on like one; the message says why."""


def looks_spelled(text: str) -> bool:
    """Whether a text must be read by `read_spelled`: it begins with a bracket or a brace, or is a tuple or an array."""
    text = text.strip()
    if not text:
        return False
    if text[0] in "[{":
        return True
    if text[0] == "(":
        return text[-1] == ")" and ("," in text or text[1:].lstrip()[:1] in ("'", '"'))
    if text[0] in "\"'":  # a list that was written as JSON twice
        return _QUOTED_LIST.match(text) is not None
    if text[-1] in "]}" and (_WRAPPED.fullmatch(text) or _PHP_DUMP.fullmatch(text)):
        return True
    if text[-1] == ")" and (_CALL.match(text) or _PHP_ARRAY.fullmatch(text)):
        return True
    return _BYTES.fullmatch(text) is not None or _SERIES.search(text) is not None


def read_spelled(text: str) -> Any:
    """The value: lists (also of tuples, sets and arrays), dicts, texts, numbers, true, false and None.

    Raises:
        SpellingError: it is no such value as a whole.
    """
    text = text.strip()
    if _PHP_DUMP.fullmatch(text) or _SERIES.search(text):
        raise SpellingError("it is printed for people, not for programs")
    if php := _PHP_ARRAY.fullmatch(text):
        return _read_php(php[1])
    try:
        value = _without_nan(json.loads(text, object_pairs_hook=_dict_of))
    except SpellingError:
        raise
    except (ValueError, RecursionError):
        reader = _Reader(text)
        value = reader.value(0)
        if reader.peek():
            raise SpellingError(f"{shortened(text[reader.at :])!r} stands behind its end") from None
    if isinstance(value, str) and len(value) < len(text) and looks_spelled(value):
        return read_spelled(value)
    return value


def spells_structure(text: str) -> bool:
    """Whether a text as a whole is a list or dict in JSON or Python, with quotes, as data frames write cells.

    ``[deleted]`` is a text of people, ``['a', 'b']`` is not.
    """
    text = text.strip()
    if text[:1] not in ("[", "{", "(") or not any(quote in text for quote in "'\"") or len(text) > 100_000:
        return False
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        pass
    try:
        return isinstance(read_spelled(text), list | dict)
    except SpellingError:
        return False


def shortened(text: str, most: int = SHOWN) -> str:
    """The text, not too long for a message."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _read_php(inner: str) -> Any:
    """What stands within ``Array ( [0] => a )`` or ``array ( 0 => 'a', )``."""
    if _PHP_ARRAY.search(inner):
        raise SpellingError("it holds arrays in an array")
    if _PHP_KEY.match(inner.lstrip()):
        _, *found = _PHP_KEY.split(inner.strip())
        pairs = [(key, _plain(value)) for key, value in zip(found[::2], found[1::2], strict=True)]
    else:
        pairs = list(_Reader("{" + inner + "}").value(0).items()) if inner.strip() else []
    if [key for key, _ in pairs] == [str(number) for number in range(len(pairs))]:
        return [value for _, value in pairs]
    return _dict_of(pairs)


class _Reader:
    """Reads a value at a position of the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip_blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self) -> str:
        self.skip_blanks()
        return self.text[self.at : self.at + 1]

    def value(self, depth: int, stops: str = "") -> Any:
        """The value that begins here; a bare word ends before a bracket, a quote or one of `stops`."""
        if depth > DEEPEST:
            raise SpellingError(f"it is nested deeper than {DEEPEST} levels")
        mark = self.peek()
        if call := _CALL.match(self.text, self.at):
            return self._call(call, depth)
        if mark in ("[", "("):
            return self._items("]" if mark == "[" else ")", depth)
        if mark == "{":
            return self._braces(depth)
        if mark and (mark in "\"'" or _PREFIX.match(self.text, self.at)):
            return self._quoted()
        return self._bare(stops)

    def _items(self, close: str, depth: int) -> list[Any]:
        """Between commas or, as NumPy writes arrays, between blanks."""
        start = self.at
        self.at += 1
        items: list[Any] = []
        commas = blanks = 0
        while self.peek() != close:
            if not self.peek():
                raise SpellingError(f"{self.text[start]!r} is not closed")
            found = self._element(depth, close)
            items += found
            blanks += len(found) - 1
            if self.peek() == ",":
                self.at += 1
                commas += 1
            elif self.peek() not in (close, ""):
                if not self.text[self.at - 1].isspace():
                    raise SpellingError(f"a comma is missing before {shortened(self.text[self.at :])!r}")
                blanks += 1
        self.at += 1
        if commas and blanks:
            raise SpellingError("some commas are missing between its parts")
        return items

    def _element(self, depth: int, close: str) -> list[Any]:
        """One element; several if they are bare numbers between blanks."""
        begin = self.at
        value = self.value(depth + 1, "," + close)
        if not isinstance(value, _Bare):
            return [value]
        words = value.split()
        if not words:
            raise SpellingError(f"nothing stands before {self.text[begin : begin + 1]!r}")
        if len(words) == 1 or all(_is_plain(word) for word in words):
            return [_plain(word) for word in words]
        is_alone = self.text[:begin].rstrip()[-1:] in "[({" and self.peek() == close
        if is_alone:
            raise SpellingError("its words have neither quotes nor commas, so it is one label or several")
        return [str(value)]

    def _braces(self, depth: int) -> Any:
        """A dict, or a set."""
        start = self.at
        self.at += 1
        if self.peek() == "}":
            self.at += 1
            return {}
        first = self.at
        key = self.value(depth + 1, ",:=}")
        if self.peek() not in (":", "="):
            self.at = start
            return self._items("}", depth)
        self.at = first
        pairs = []
        while self.peek() != "}":
            key = self.value(depth + 1, ",:=}")
            if isinstance(key, _Bare):
                key = str(key)
            if self.peek() not in (":", "="):
                raise SpellingError("it is neither a dict nor a list: some parts have a name and some have none")
            self.at += 2 if self.text.startswith("=>", self.at) else 1
            (value,) = self._single(depth)
            pairs.append((key, value))
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != "}":
                raise SpellingError(f"{self.text[start]!r} is not closed")
        self.at += 1
        return _dict_of(pairs)

    def _single(self, depth: int) -> list[Any]:
        value = self.value(depth + 1, ",}")
        if isinstance(value, _Bare) and not value:
            raise SpellingError("it has a name without a value")
        return [_plain(str(value)) if isinstance(value, _Bare) else value]

    def _call(self, call: re.Match[str], depth: int) -> Any:
        """``array([…], dtype=…)``, ``List(a, b)``, ``np.int64(3)``: of named arguments none is used."""
        name = call[1]
        self.at = call.end()
        if factory := _FACTORY.match(self.text, self.at):
            self.at = factory.end()
        found: list[Any] = []
        while self.peek() != ")":
            if not self.peek():
                raise SpellingError(f"{name}( is not closed")
            if keyword := _KEYWORD.match(self.text, self.at):
                self.at = keyword.end()
                self.value(depth + 1, ",)")
            else:
                found += self._element(depth, ")")
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != ")":
                raise SpellingError(f"a comma is missing in {name}(…)")
        self.at += 1
        if re.fullmatch(_SCALARS, name) and not re.fullmatch(_LISTS, name):
            if len(found) != 1 or isinstance(found[0], list | dict):
                raise SpellingError(f"{name}(…) is not one value")
            return _plain(found[0]) if isinstance(found[0], str) and name == "Decimal" else found[0]
        if re.fullmatch(_DICTS, name):
            return self._as_dict(name, found)
        if len(found) == 1 and isinstance(found[0], dict) and name.startswith("dict_"):
            return found[0]
        return found[0] if len(found) == 1 and isinstance(found[0], list) else found

    @staticmethod
    def _as_dict(name: str, found: list[Any]) -> dict[Any, Any]:
        if not found:
            return {}
        value = found[-1]
        if isinstance(value, dict):
            return value
        if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            return _dict_of([tuple(pair) for pair in value])
        raise SpellingError(f"{name}(…) holds no dict")

    def _quoted(self) -> str:
        """A text in quotes, with the escapes of JSON or Python."""
        begin = self.at
        if _PREFIX.match(self.text, self.at):
            self.at += 1
        quote, first = self.text[self.at], self.at
        self.at += 1
        while self.text[self.at : self.at + 1] != quote:
            if self.at >= len(self.text):
                raise SpellingError(f"the quote {quote} is not closed")
            self.at += 2 if self.text[self.at] == "\\" else 1
        self.at += 1
        inner = self.text[first + 1 : self.at - 1]
        if self.text[self.at : self.at + 1] in ("'", '"') or self.text[self.at : self.at + 1].isalnum():
            raise SpellingError(f"a comma is missing before {shortened(self.text[self.at :])!r}")
        if "\\" not in inner and (begin == first or self.text[begin] not in "bB"):
            return inner
        try:
            if quote == '"' and begin == first:
                return str(json.loads(self.text[first : self.at], strict=False))
        except ValueError:
            pass
        try:
            found = ast.literal_eval(self.text[begin : self.at])
            return found.decode() if isinstance(found, bytes) else str(found)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return _ESCAPED.sub(lambda match: match[0][1:], inner)

    def _bare(self, stops: str) -> _Bare:
        begin = self.at
        while self.at < len(self.text) and self.text[self.at] not in stops and self.text[self.at] not in "[](){}\"'":
            self.at += 1
        word = self.text[begin : self.at].strip()
        if self.at < len(self.text) and self.text[self.at] not in stops and not self.text[self.at - 1].isspace():
            raise SpellingError(f"{shortened(self.text[self.at :])!r} stands in the middle of a word without quotes")
        if "..." in word or "…" in word:
            raise SpellingError("it was shortened with ... when it was written")
        if any(mark in word for mark in (";", "|", "->", "=>")):
            raise SpellingError("commas must stand between its parts")
        return _Bare(word)


class _Bare(str):
    """A word, or words, without quotes."""

    __slots__ = ()


def _dict_of(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        name = "true" if key is True else "false" if key is False else str(key)
        if name in found:
            raise SpellingError(f"it has {name!r} twice")
        found[name] = _without_nan(value)
    return found


def _is_plain(word: str) -> bool:
    return word in _WORDS or _NUMBER.fullmatch(word) is not None


def _plain(word: str) -> Any:
    """A number, true, false or None if the word is one; else the word itself."""
    word = word.strip()
    if word in _WORDS:
        return _WORDS[word]
    if not _NUMBER.fullmatch(word):
        return word
    number = float(word)
    if not math.isfinite(number):
        return word
    is_whole = re.fullmatch(r"[+-]?\d+", word) is not None
    if is_whole and (len(word) > 18 or re.match(r"[+-]?0\d", word)):
        return word  # leading zeros and long ids are names
    return int(word) if is_whole else number


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return [_without_nan(one) for one in value] if isinstance(value, list) else value
