"""Lines for a person: what they quote cannot steer a terminal, and an output that fails does not stop the work.

Names of files, heads and labels may come from anyone. Escape sequences in them could hide lines or show other ones.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from typing import Literal

# Control characters, lone surrogates, which no output can encode, and the separators of lines and paragraphs.
HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
# These change the order in which a terminal shows the characters around them.
TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """The text in one line, with escapes for what a terminal would obey instead of showing it."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in HIDDEN or character in TURNS
        else character
        for character in text
    )


def say(line: str, stream: Literal["stdout", "stderr"] = "stdout") -> None:
    """Prints a line at once. If that fails, because the disk is full or the reader has left, no more lines are printed.

    Else the work would end in the middle, or a command that did its work would end with an exit code of failure.
    """
    file = getattr(sys, stream)
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except (OSError, ValueError):  # ValueError: it is closed
        setattr(sys, stream, io.StringIO())
