"""What reading a head's cells assumed, left out or changed, with counts: printed before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from polyhead_rows.spelling import shortened

SAID = {
    "missing": 'times {words} means unknown; missing = ["..."] names other words',
    "empty": "cells are empty and count as unknown",
    "none": 'cells are empty and count as no label; empty_cells = "unknown" changes that',
    "hollow": "lists hold only unknown parts and count as unknown",
    "partly": 'rows are known in some columns only and count as unknown; empty_cells = "no_labels" reads empty as 0',
    "spelled": "texts were read as lists; as_written = true takes them as they are",
    "quoted": "texts have the separator in quotes or behind a backslash; as_written = true cuts there too",
    "tags": "texts were read as tags such as <a><b>; as_written = true takes them as they are",
    "markup": "texts were read as markup, each element as a label; as_written = true takes them as they are",
    "fasttext": "texts were read as labels of fastText: __label__ was taken off; as_written = true leaves it",
    "hashes": "texts were read as hash tags or mentions: # or @ was taken off; as_written = true leaves it",
    "bullets": "texts were read as lists: bullets or numbers were taken off; as_written = true leaves them",
    "pairs": "texts were read as labels with 0, 1 or a share each; as_written = true takes them as they are",
    "escaped": "texts have HTML escapes such as &amp;, which were resolved; as_written = true leaves them",
    "control": "texts were cut at control characters; as_written = true leaves them",
    "lines": "texts were cut at line breaks or tabs; as_written = true leaves them",
    "breaks": "labels have line breaks or tabs, which became blanks; a multi_label head cuts there",
    "nothing": "cells hold no label and count as unknown",
    "vector": "vectors of 0 and 1 were read by position",
    "share": "cells have shares between 0 and 1, which count as the label from at_least ({at_least:g}) on",
    "left_out": "lists have parts that are blank or null, which were left out",
    "unsubmitted": "answers of annotators are drafts or discarded and were left out",
    "ends": "labels end or begin with a separator, which was taken off; as_written = true leaves it",
    "evened": "labels were evened out: blanks, invisible characters, Unicode form NFC",
    "repeated": "cells name a label twice; it counts once",
}
"""By kind, what its line says after the count."""


class CellNotes:
    """Counts by kind, and the first place and cell of each kind.

    Attributes:
        words: how often each word meant unknown.
        has_separator: whether a text had the separator.
        texts: how many texts could have had it.
        paired: the labels that stood in pairs with a share.
    """

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.has_separator = False
        self.texts = 0
        self.paired: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, place: str, value: object = None) -> None:
        """Counts one of a kind in `SAID`."""
        self._counts[kind] += 1
        if kind not in self._first:
            shown = "" if value is None else f": {shortened(repr(value))}"
            self._first[kind] = f"first {place.partition(': column')[0]}{shown}"

    def lines(self, at_least: float) -> Iterator[str]:
        """A line per kind that occurred."""
        words = ", ".join(f"{word!r} ({times})" for word, times in self.words.most_common(6))
        for kind, said in SAID.items():
            if count := self._counts[kind]:
                yield f"{count} {said.format(words=words, at_least=at_least)} ({self._first[kind]})"
