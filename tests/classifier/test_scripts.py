"""The script of a text."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.scripts import MOST_CHARACTERS, SCRIPTS, scripts_of

TEXTS = {
    "Rain.": "latin",
    "Größe, Übermut, naïve café": "latin",
    "Trần Hưng Đạo": "latin",
    "Быстрая коричневая лиса": "cyrillic",
    "Η γρήγορη αλεπού": "greek",
    "مرحبا بالعالم": "arabic",
    "שלום עולם": "hebrew",
    "नमस्ते दुनिया": "devanagari",
    "வணக்கம்": "indic",
    "สวัสดีชาวโลก": "thai",
    "გამარჯობა": "georgian",
    "Բարև": "armenian",
    "ሰላም": "ethiopic",
    "안녕하세요 세계": "hangul",
    "東京へようこそ": "cjk",
    "你好，世界": "cjk",
    "𠀀𠀁": "cjk",
    "🙂🎉": "emoji",
    "🙂 ok": "latin",  # one emoji, two letters
    "ok 🙂🙂🙂": "emoji",  # three emoji, two letters
    "ab где": "cyrillic",  # two and three letters
    "ရန်ကုန်": "other",
    "12 % (3/4)": "none",
    "१२३": "none",  # digits of any script are no letters
    "": "none",
    "×÷¿": "none",
    "\U000e0001\ufe0f": "none",
}


@pytest.mark.parametrize(("text", "script"), TEXTS.items(), ids=lambda value: ascii(value)[:20])
def test_a_text_has_the_script_of_most_of_its_letters(text: str, script: str) -> None:
    """Letters and emoji count, digits and punctuation do not."""
    assert scripts_of([text]) == [script]


def test_texts_of_a_batch_do_not_mix() -> None:
    """Each text gets the script that it gets alone, whatever stands beside it."""
    assert scripts_of(list(TEXTS)) == list(TEXTS.values())
    assert scripts_of([]) == []


def test_only_the_beginning_counts() -> None:
    """After MOST_CHARACTERS, which are 256, nothing is looked at, so a text of megabytes costs no more."""
    assert MOST_CHARACTERS == 256
    assert scripts_of(["a" * 129 + "я" * 10_000]) == ["latin"]
    assert scripts_of(["a" * 127 + "я" * 10_000]) == ["cyrillic"]


NAMES = {name.upper(): name for name in SCRIPTS if name not in {"indic", "emoji", "other", "none"}}


def test_letters_belong_to_the_script_in_their_unicode_name() -> None:
    """Of the letters whose Unicode name begins with a script, few are of another one, for example Coptic's."""
    letters = [letter for letter in map(chr, range(0x10000)) if unicodedata.category(letter)[0] == "L"]
    wrong, known = Counter[str](), Counter[str]()
    for letter, script in zip(letters, scripts_of(letters), strict=True):
        name = unicodedata.name(letter, "").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ")
        begins = "CJK" if name.startswith(("HIRAGANA ", "KATAKANA ")) else name.partition(" ")[0]
        if begins in NAMES:
            known[begins] += 1
            wrong[begins] += script != NAMES[begins]
    assert known.keys() == NAMES.keys()
    assert known["CJK"] > 27_000
    for begins, count in known.items():
        assert wrong[begins] <= 2 + 0.03 * count, begins


@given(st.lists(st.text(max_size=40), max_size=4))
def test_every_text_has_one_of_the_scripts(texts: list[str]) -> None:
    """Any text gets one, so the number of time series is bounded."""
    found = scripts_of(texts)
    assert len(found) == len(texts)
    assert set(found) <= set(SCRIPTS)
