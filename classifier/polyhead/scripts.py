"""The script of a text: Latin, Cyrillic, Arabic and so on, by the Unicode blocks of its first letters.

A script is no language: English and French are both Latin. A text has the script of most of its letters; emoji count
like letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

MOST_CHARACTERS = 256  # of each text; more would rarely change the answer

NONE = "none"  # only digits, punctuation and the like
OTHER = "other"
# First and last character of neighbouring Unicode blocks (Blocks.txt of Unicode 16), and their script. Only their
# letters and vowel signs count.
_BLOCKS = (
    (0x0000, 0x024F, "latin"), (0x0250, 0x02AF, "latin"), (0x1D00, 0x1DBF, "latin"),
    (0x1E00, 0x1EFF, "latin"), (0x2C60, 0x2C7F, "latin"),
    (0x2071, 0x209C, "latin"), (0x212A, 0x212B, "latin"),
    (0xA720, 0xA7FF, "latin"), (0xAB30, 0xAB6F, "latin"), (0xFB00, 0xFB06, "latin"), (0xFF21, 0xFF5A, "latin"),
    (0x0370, 0x03FF, "greek"), (0x1F00, 0x1FFF, "greek"),
    (0x0400, 0x052F, "cyrillic"), (0x1C80, 0x1C8F, "cyrillic"), (0x2DE0, 0x2DFF, "cyrillic"),
    (0xA640, 0xA69F, "cyrillic"),
    (0x0530, 0x058F, "armenian"), (0xFB13, 0xFB17, "armenian"),
    (0x0590, 0x05FF, "hebrew"), (0xFB1D, 0xFB4F, "hebrew"),
    (0x0600, 0x06FF, "arabic"), (0x0750, 0x077F, "arabic"), (0x0870, 0x08FF, "arabic"), (0xFB50, 0xFDFF, "arabic"),
    (0xFE70, 0xFEFE, "arabic"),
    (0x0900, 0x097F, "devanagari"), (0xA8E0, 0xA8FF, "devanagari"),
    (0x0980, 0x0DFF, "indic"),  # Bengali to Sinhala, with Tamil, Telugu and their neighbours
    (0x0E00, 0x0E7F, "thai"),
    (0x10A0, 0x10FF, "georgian"), (0x1C90, 0x1CBF, "georgian"), (0x2D00, 0x2D2F, "georgian"),
    (0x1200, 0x139F, "ethiopic"), (0x2D80, 0x2DDF, "ethiopic"), (0xAB00, 0xAB2F, "ethiopic"),
    (0x1100, 0x11FF, "hangul"), (0x3130, 0x318F, "hangul"), (0xA960, 0xA97F, "hangul"), (0xAC00, 0xD7FF, "hangul"),
    (0xFFA0, 0xFFDC, "hangul"),
    (0x2E80, 0x2FDF, "cjk"), (0x3005, 0x312F, "cjk"), (0x31A0, 0x31FF, "cjk"), (0x3400, 0x4DBF, "cjk"),
    (0x4E00, 0x9FFF, "cjk"), (0xF900, 0xFAFF, "cjk"), (0xFF66, 0xFF9F, "cjk"),
)  # fmt: skip
# Above U+FFFF, and symbols: every character counts.
_WHOLE_BLOCKS = (
    (0x2600, 0x27BF, "emoji"), (0x1F000, 0x1FAFF, "emoji"), (0x20000, 0x323AF, "cjk"), (0x1B000, 0x1B16F, "cjk"),
)  # fmt: skip
SCRIPTS = (*dict.fromkeys(script for _, _, script in (*_BLOCKS, *_WHOLE_BLOCKS)), OTHER, NONE)
_HAS_LETTER = re.compile("[A-Za-z]").search


def scripts_of(texts: Sequence[str]) -> list[str]:
    """The script of each text, one of SCRIPTS."""
    beginnings = [text[:MOST_CHARACTERS] for text in texts]
    found = [("latin" if _HAS_LETTER(text) else NONE) if text.isascii() else "" for text in beginnings]
    rest = [position for position, script in enumerate(found) if not script]
    if rest:
        for position, script in zip(rest, _majorities([beginnings[position] for position in rest]), strict=True):
            found[position] = script
    return found


def _majorities(texts: Sequence[str]) -> list[str]:
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    table = _table()
    scripts = table[np.minimum(characters, len(table) - 1)].astype(np.int64)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    counts = np.bincount(rows * len(SCRIPTS) + scripts, minlength=len(texts) * len(SCRIPTS))
    letters = counts.reshape(len(texts), len(SCRIPTS))[:, :-1]  # without NONE, which is last
    best = np.where(letters.any(axis=1), letters.argmax(axis=1), len(SCRIPTS) - 1)
    return [SCRIPTS[index] for index in best]


@cache
def _table() -> NDArray[np.uint8]:
    """The index in SCRIPTS of each character; the last entry stands for all above."""
    table = np.full(0x32400, SCRIPTS.index(OTHER), dtype=np.uint8)
    table[0xD800:0xF900] = SCRIPTS.index(NONE)  # surrogates and private use
    for first, last, script in _BLOCKS:
        table[first : last + 1] = SCRIPTS.index(script)
    is_letter = [unicodedata.category(chr(code))[0] == "L" or _is_vowel_sign(code) for code in range(0x10000)]
    table[:0x10000][~np.array(is_letter)] = SCRIPTS.index(NONE)
    for first, last, script in _WHOLE_BLOCKS:
        table[first : last + 1] = SCRIPTS.index(script)
    table[-1] = SCRIPTS.index(NONE)  # tags, variation selectors, private use
    return table


def _is_vowel_sign(code: int) -> bool:
    """Marks of scripts that write vowels with them. Accents and variation selectors belong to no script."""
    return 0x0900 <= code < 0x1200 and unicodedata.category(chr(code))[0] == "M"
