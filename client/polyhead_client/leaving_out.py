"""Which words are left out of a text, and what its scores are without them. Without I/O.

`leave_out` yields lists of texts and is sent their scores, so it works with anything that turns texts into scores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_client.errors import BadResponseError, UsageError
from polyhead_client.words import Removed, SplitText

ENDS = 2  # each list begins and ends with the whole text, which shows whether the model was replaced in between
REPLACED = 0.01  # scores of one text that differ by a larger share come from two models
Scores = NDArray[np.float32]  # (texts, columns); a row of NaN for a text without an answer
Asking = Generator[list[Any], Scores, "LeftOut"]


@dataclass
class LeftOut:
    """What was measured.

    Attributes:
        whole: the scores of the whole text, ``(columns,)``.
        rows: the scores without these words.
        groups: the sentences, or several neighbours together, that were left out; empty if each word was.
        texts: how many texts were asked.
    """

    whole: Scores = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    rows: dict[Removed, Scores] = field(default_factory=dict)
    groups: tuple[range, ...] = ()
    texts: int = 0

    def effect(self, removed: Iterable[int], column: int) -> float | None:
        """How much higher the score is with these words; None if that was not asked or has no answer."""
        row = self.rows.get(tuple(removed))
        if row is None or np.isnan(row[column]):
            return None
        return float(self.whole[column]) - float(row[column])


def leave_out(
    text: SplitText,
    read: int,
    most_texts: int,
    choose: Callable[[Scores], Sequence[int]],
    tolerance: float,
) -> Asking:
    """Leaves out each word or, if these are too many, each sentence and then the words of the strongest sentences.

    A word that occurs at several places is also left out at all of them.

    Args:
        read: the model reads no word from this position on.
        most_texts: how many texts may be asked.
        choose: the columns that matter, given the scores of the whole text.
        tolerance: how far apart two scores of the same text may be.

    Raises:
        BadResponseError: the whole text's scores have changed in between.
        UsageError: there are more fields than texts that may be asked.
    """
    left_out = LeftOut()
    places = text.places()
    repeated = {place: removed for removed in places.values() for place in removed}
    single: list[Removed] = [(place,) for place in range(read)]
    room = most_texts - ENDS
    if len(single) <= room:
        often = sorted({repeated[place] for place in range(read) if place in repeated}, key=len, reverse=True)
        yield from _ask(text, left_out, [*single, *often[: room - len(single)]], tolerance)
        return left_out
    groups = _groups(text, read, (room - ENDS) // 2)
    if len(groups) > room:
        raise UsageError(f"most_texts is too small for a text of {len(groups)} fields: {most_texts}")
    yield from _ask(text, left_out, [tuple(group) for group in groups], tolerance)
    left_out.groups = tuple(groups)
    room -= len(groups) + ENDS
    wanted: list[Removed] = []
    for group in _strongest(left_out, groups, choose(left_out.whole)):
        new = [(place,) for place in group if (place,) not in left_out.rows]
        if len(wanted) + len(new) <= room:
            wanted += new
    also = dict.fromkeys(repeated[one[0]] for one in wanted if one[0] in repeated)
    wanted += list(also)[: room - len(wanted)]
    if wanted:
        yield from _ask(text, left_out, wanted, tolerance)
    return left_out


def _ask(
    text: SplitText, left_out: LeftOut, removals: Sequence[Removed], tolerance: float
) -> Generator[list[Any], Scores, None]:
    whole = text.without(())
    rows = yield [whole, *(text.without(removed) for removed in removals), whole]
    if not left_out.texts:
        left_out.whole = rows[0]
    for again in (rows[0], rows[-1]):
        if again.shape != left_out.whole.shape or not np.allclose(again, left_out.whole, rtol=REPLACED, atol=tolerance):
            raise BadResponseError("the scores of the text have changed in between; was the model replaced? Ask again")
    left_out.rows |= dict(zip(removals, rows[1:-1], strict=True))
    left_out.texts += len(rows)


def _groups(text: SplitText, read: int, most: int) -> list[range]:
    """The sentences, up to the word `read`, or so many neighbours of a field together that there are at most `most`."""
    sentences = [range(one.start, min(one.stop, read)) for one in text.sentences if one.start < read]
    fields = [list(same) for _, same in groupby(sentences, lambda one: text.words[one.start].field)]
    for size in range(1, len(sentences) + 1):
        if size == len(sentences) or sum(-(-len(field) // size) for field in fields) <= most:
            break
    parts = [field[start : start + size] for field in fields for start in range(0, len(field), size)]
    return [range(part[0].start, part[-1].stop) for part in parts]


def _strongest(left_out: LeftOut, groups: Sequence[range], columns: Sequence[int]) -> list[range]:
    """The groups, those first that moved any of the columns most; columns count alike, whatever their units."""
    ranks = dict.fromkeys(groups, len(groups))
    for column in columns:
        effects = {group: left_out.effect(group, column) for group in groups}
        # A group without which there is no score may be all that counts.
        by_effect = sorted(groups, key=lambda group: np.inf if effects[group] is None else abs(effects[group] or 0.0))
        for rank, group in enumerate(reversed(by_effect)):
            ranks[group] = min(ranks[group], rank)
    return sorted(groups, key=lambda group: ranks[group])
