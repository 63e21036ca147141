"""Words and sentences of texts in many scripts, and texts without some of their words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead_client.words import SplitText


def words_of(text: str) -> list[str]:
    return [word.text for word in SplitText.split(text).words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A goal, in the 90th minute!", ["A", "goal", ",", "in", "the", "90th", "minute", "!"]),
        ("don't rock’n’roll state-of-the-art", ["don't", "rock’n’roll", "state-of-the-art"]),
        ("well--known 'quoted' end.", ["well", "--", "known", "'", "quoted", "'", "end", "."]),
        ("3.14 and 1,000,000 at 12:30 on 24/12", ["3.14", "and", "1,000,000", "at", "12:30", "on", "24/12"]),
        ("snake_case user@example.com", ["snake_case", "user", "@", "example.com"]),
        ("東京へ行く。", ["東", "京", "へ", "行", "く", "。"]),
        ("カタカナ 한국어 문장", ["カタカナ", "한국어", "문장"]),
        ("ดีมาก", ["ดี", "ม", "า", "ก"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مُباراة جيّدة؟", ["مُباراة", "جيّدة", "؟"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("cafe\u0301 nai\u0308ve", ["cafe\u0301", "nai\u0308ve"]),
        ("bad😡😡good👍🏽 👩‍👩‍👧 🇩🇪🇫🇷 ❤️", ["bad", "😡😡", "good", "👍🏽", "👩‍👩‍👧", "🇩🇪", "🇫🇷", "❤️"]),
        ("so bad!!! ... )", ["so", "bad", "!!!", "...", ")"]),
        ("", []),
        (" \n\t\u3000", []),
        ("\x00\x07", ["\x00\x07"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Words are what readers of each script take for words; punctuation and emoji are parts of their own."""
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "removed", "left"),
    [
        ("a goal in time", "goal", "a in time"),
        ("a goal in time", "a", "goal in time"),
        ("a goal in time", "time", "a goal in"),
        ("a goal, in time", "goal", "a, in time"),
        ("a goal, in time", ",", "a goal in time"),
        ("a (goal in) time", "goal", "a (in) time"),
        ("a (goal) b", "goal", "a () b"),
        ("a goal!", "goal", "a!"),
        ("and/or", "/", "and or"),
        ("good😡bad", "😡", "good bad"),
        ("東京へ", "京", "東へ"),
        ("first\n\nsecond third", "second", "first\n\nthird"),
        ("first second\nthird", "second", "first\nthird"),
        ("  first second  ", "first", "  second  "),
        ("  first second  ", "second", "  first  "),
        ("only", "only", ""),
        ("  only  ", "only", ""),
        ("good good good", "good", ""),
        ("a b a c a", "a", "b c"),
        ("$5 off", "5", "$ off"),
        ("مباراة جيدة جدا", "جيدة", "مباراة جدا"),
    ],
)
def test_text_without_a_word(text: str, removed: str, left: str) -> None:
    """The text without all occurrences of a word reads as if the word had never been there."""
    split = SplitText.split(text)
    assert split.without([place for place, word in enumerate(split.words) if word.text == removed]) == left


def test_fields() -> None:
    """Each field keeps its own words; a number is one word, and without it the field is null."""
    row = {"Body": "It fits. Well", "Title": "Great shirt", "Age": 34, "Sold": True, "Note": None, "Empty": " "}
    split = SplitText.split(row, ("Title", "Body", "Age", "Sold", "Note", "Empty"))
    assert [(word.field, word.text) for word in split.words] == [
        ("Title", "Great"), ("Title", "shirt"), ("Body", "It"), ("Body", "fits"), ("Body", "."), ("Body", "Well"),
        ("Age", "34"), ("Sold", "true"),
    ]  # fmt: skip
    assert split.without([1]) == row | {"Title": "Great"}
    assert split.without([0, 1, 3]) == row | {"Title": "", "Body": "It. Well"}
    assert split.without([6, 7]) == row | {"Age": None, "Sold": None}
    assert [list(one) for one in split.sentences] == [[0, 1], [2, 3, 4], [5], [6], [7]]
    assert row["Title"] == "Great shirt"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Rain. Sun! Why? End", ["Rain.", "Sun!", "Why?", "End"]),
        ('He said "go." Then 3.5 fell.', ['He said "go."', "Then 3.5 fell."]),
        ("a title\nbody text", ["a title", "body text"]),
        ("東京。大阪！", ["東京。", "大阪！"]),
        ("ok... so (yes.) no", ["ok...", "so (yes.)", "no"]),
        ("مرحبا؟ نعم", ["مرحبا؟", "نعم"]),
        ("w " * 90, ["w " * 39 + "w", "w " * 39 + "w", "w " * 9 + "w"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    """A sentence ends at its mark, at a line's end, or after 40 words."""
    split = SplitText.split(text)
    found = [text[split.words[one[0]].start : split.words[one[-1]].end] for one in split.sentences]
    assert found == sentences


def test_places() -> None:
    """A word's places are found however it is capitalised; punctuation and single words have none."""
    assert SplitText.split("Good, good, GOOD. Fine").places() == {"good": (0, 2, 4)}


TEXTS = st.text(st.sampled_from("aB1 .,!?'-\n\t()東京ก็😡🏽\u0301\u200d\u200b\u202e_%/"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(TEXTS | st.text(max_size=40), st.data())
def test_nothing_is_lost(text: str, data: st.DataObject) -> None:
    """Words hold every character but blanks, once; removing none changes nothing; what stays keeps its order."""
    split = SplitText.split(text)
    position = 0
    for word in split.words:
        assert not text[position : word.start].strip()
        assert word.text == text[word.start : word.end] != ""
        position = word.end
    assert not text[position:].strip()
    assert [place for one in split.sentences for place in one] == list(range(len(split.words)))
    assert split.without(()) == text
    removed = data.draw(st.sets(st.sampled_from(range(len(split.words))))) if split.words else set()
    kept = "".join(word.text for place, word in enumerate(split.words) if place not in removed)
    assert re.sub(r"\s", "", str(split.without(removed))) == re.sub(r"\s", "", kept)
