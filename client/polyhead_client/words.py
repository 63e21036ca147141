"""The words and sentences of one text or of its fields, and the text without some of them. Without I/O.

A word is a run of letters, digits and marks (`don't`, `state-of-the-art`, `3.14`), one emoji, or a run of punctuation.
In scripts without blanks between words, such as Chinese, Japanese and Thai, one character with its marks is a word.
This follows Unicode's word boundaries (UAX #29) without its tables. All other characters are blanks, so nothing of a
text is outside of its words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, groupby

LONGEST_SENTENCE = 40  # words; a text without full stops also falls into groups
ZERO_WIDTH_SPACE = "\u200b"  # separates words, unlike the other characters of its category
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
SYMBOLS = "\u2190-\u2bff\U0001f000-\U0001faff"  # emoji, arrows, lines
SKIN_TONES = "\U0001f3fb-\U0001f3ff"
FLAG_LETTERS = "\U0001f1e6-\U0001f1ff"
CLOSING = frozenset(".,;:!?…%)]}»”’。、，！？；：）】」』،؛؟۔।॥")
OPENING = frozenset("([{«“‘¿¡（【「『")
ENDS_SENTENCE = re.compile("[.!?…؟۔।॥。！？]")
ENDS_WITHOUT_BLANK = re.compile("[।॥。！？]")
SPACELESS_LETTER = re.compile(f"[{SPACELESS}]")

Removed = tuple[int, ...]  # positions of words, in ascending order
Value = str | float | bool | None  # of a field


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a text, for example a word: ``source[start:end]``, or of the value of a field."""

    text: str
    start: int
    end: int
    field: str | None = None


@dataclass(frozen=True)
class SplitText:
    """A text, or the values of its fields, with its words in the order in which the model reads them.

    Attributes:
        source: the text, or its fields. A value that is a number or a truth value is one word.
        words: all words.
        sentences: the positions of each sentence's words. A sentence never spans two fields.
    """

    source: str | Mapping[str, Value]
    words: tuple[TextPart, ...]
    sentences: tuple[range, ...]

    @classmethod
    def split(cls, source: str | Mapping[str, Value], fields: Sequence[str] = ()) -> SplitText:
        """Splits a text, or the values of these fields."""
        if isinstance(source, str):
            words = tuple(_split_value(source, None))
        else:
            words = tuple(word for name in fields for word in _split_value(source.get(name), name))
        return cls(source, words, tuple(_sentences(source, words)))

    def without(self, removed: Iterable[int]) -> str | dict[str, Value]:
        """The text, or the fields, without these words. Of the blanks around a removed word, one run stays."""
        gone = sorted(removed)
        if isinstance(self.source, str):
            return _join(self.source, self.words, gone)
        fields = dict(self.source)
        for name, places in self._places_of_fields.items():
            own = [place - places.start for place in gone if place in places]
            if own:
                value = fields[name]
                words = self.words[places.start : places.stop]
                fields[name] = _join(value, words, own) if isinstance(value, str) else None
        return fields

    @cached_property
    def _places_of_fields(self) -> dict[str, range]:
        names = [word.field or "" for word in self.words]
        return {name: range(names.index(name), names.index(name) + names.count(name)) for name in dict.fromkeys(names)}

    def value(self, field: str | None) -> str:
        """The text of a field, or the whole text if there are no fields."""
        return value_text(self.source, field)

    def places(self) -> dict[str, Removed]:
        """For each word that occurs at several places, however capitalised: these places. Punctuation is left out."""
        found: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(self.words):
            if not _word_pattern().punctuation.fullmatch(word.text):
                found[word.text.casefold()].append(place)
        return {word: tuple(places) for word, places in found.items() if len(places) > 1}


@dataclass(frozen=True)
class _WordPattern:
    word: re.Pattern[str]
    punctuation: re.Pattern[str]


@cache
def _word_pattern() -> _WordPattern:
    """Matches one word; matches punctuation. Made at the first use, because Unicode's marks must be listed."""
    categories = ("Mn", "Mc", "Me", "Cf")
    characters = map(chr, chain(range(0x80, 0x20000), range(0xE0000, 0xE0200)))  # ideographs and private ones have none
    kept = (one for one in characters if one != ZERO_WIDTH_SPACE and unicodedata.category(one) in categories)
    marks = "".join(_ranges(map(ord, kept)))
    letter = rf"[^\W{SPACELESS}]"
    joiner = rf"['’.\-·](?={letter})|(?<=\d)[,:/](?=\d)"
    symbol = rf"[{FLAG_LETTERS}]{{2}}|([{SYMBOLS}])(?:\1|[{marks}{SKIN_TONES}]|(?<=\u200d)[{SYMBOLS}])*"
    punctuation = rf"[^\w\s{SPACELESS}{SYMBOLS}]+"
    return _WordPattern(
        re.compile(rf"{letter}(?:{letter}|[{marks}]|{joiner})*|[{SPACELESS}][{marks}]*|{symbol}|{punctuation}"),
        re.compile(punctuation),
    )


def _ranges(codes: Iterable[int]) -> Iterator[str]:
    """A regular expression's ranges of these code points."""
    for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        found = [code for _, code in run]
        yield rf"\U{found[0]:08x}-\U{found[-1]:08x}"


def _split_value(value: Value, field: str | None) -> Iterator[TextPart]:
    if isinstance(value, str):
        for match in _word_pattern().word.finditer(value):
            yield TextPart(match[0], match.start(), match.end(), field)
    elif value is not None:
        text = _as_text(value)
        yield TextPart(text, 0, len(text), field)


def value_text(source: str | Mapping[str, Value], field: str | None) -> str:
    """The text of a field, or the whole text if there are no fields."""
    return source if isinstance(source, str) else _as_text(source.get(field or ""))


def _as_text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _sentences(source: object, words: Sequence[TextPart]) -> Iterator[range]:
    first = 0
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else None
        if (
            following is None
            or following.field != word.field
            or place + 1 - first == LONGEST_SENTENCE
            or _ends_sentence(source, word, following)
        ):
            yield range(first, place + 1)
            first = place + 1


def _ends_sentence(source: object, word: TextPart, following: TextPart) -> bool:
    value = source if isinstance(source, str) else source[word.field]  # type: ignore[index] # two words: a text
    gap = value[word.end : following.start]
    if "\n" in gap:
        return True
    return bool(ENDS_SENTENCE.search(word.text) if gap else ENDS_WITHOUT_BLANK.search(word.text)) and bool(
        _word_pattern().punctuation.fullmatch(word.text)
    )


def _join(value: str, words: Sequence[TextPart], removed: Sequence[int]) -> str:
    """The value without these words. The blanks before its first and after its last word stay."""
    pieces, position, last = [], 0, len(words) - 1
    for _, pairs in groupby(enumerate(removed), lambda pair: pair[1] - pair[0]):
        run = [place for _, place in pairs]
        if run[0] == 0 and run[-1] == last:
            return ""
        if run[0] == 0:
            pieces.append(value[: words[0].start])
            position = words[run[-1] + 1].start
        elif run[-1] == last:
            pieces.append(value[position : words[run[0] - 1].end])
            position = words[last].end
        else:
            before, after = words[run[0] - 1], words[run[-1] + 1]
            left, right = value[before.end : words[run[0]].start], value[words[run[-1]].end : after.start]
            pieces += [value[position : before.end], _gap(before.text[-1], left, right, after.text[0])]
            position = after.start
    return "".join([*pieces, value[position:]])


def _gap(before: str, left: str, right: str, after: str) -> str:
    """The blanks that stay between two words if those between them are gone: `left` or `right`, as people write."""
    if not right and after in CLOSING:
        return ""
    if not left and before in OPENING:
        return ""
    if not left and not right:  # "and/or" without "/" is two words
        return " " if _is_spaced_letter(before) and _is_spaced_letter(after) else ""
    return max(left, right, key=lambda blanks: (blanks.count("\n"), len(blanks)))


def _is_spaced_letter(character: str) -> bool:
    is_letter = character.isalnum() or unicodedata.category(character).startswith("M")
    return is_letter and SPACELESS_LETTER.match(character) is None
