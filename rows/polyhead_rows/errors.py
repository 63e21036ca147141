"""The error of this package."""

from __future__ import annotations


class TableError(Exception):
    """A file cannot be read or written as a whole. The message is one line: the file, the place, what to do."""


def one_line(error: object, longest: int = 200) -> str:
    """What another library said, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
