"""A text of several labels with separators: how it is cut, and which separator it seems to have."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

CERTAIN = (";", "|", "\t", ",", "；", "、", "，", "،", "؛", "¦", "\\n", "\\t")
"""In a label they are a separator more often than not. The last two are a backslash and a letter."""
PATHS = (" > ", " -> ", " => ", " » ", " → ", " :: ", " >> ", "->", "=>", ">>", ">", "→", "»", "::", "\\", "/")
"""Between the levels of a taxonomy."""
WORDS = (
    " and ", " & ", " or ", " + ", " und ", " oder ", " et ", " ou ", " y ", " AND ", " OR ", "&", "+", " • ", "•",
    " · ", "·", " — ", " – ", "##", "@@", "~", "^",
)  # fmt: skip
LOOSE = (" / ", "/", " ", ":")
"""In a label they mean nothing, unless the parts occur again and again."""

MOST = 20_000  # labels that are looked at

_LINES = re.compile("[\r\n\t\v\f\x85\u2028\u2029]+")
_OTHER = re.compile(r"(?<=\w)\s*[^\w\s]+\s*(?=\w)|(?<=[^\W_])_+(?=[^\W_])")


def parts_between(text: str, separator: str) -> list[str]:
    """The parts between separators, without blanks around them."""
    return [part.strip() for part in text.split(separator)]


def line_parts(text: str) -> list[str]:
    """The parts between line breaks and tabs."""
    return [line.strip() for line in _LINES.split(text.strip())]


def cut_bracket(text: str, parts: Sequence[str]) -> str | None:
    """A part that opens a bracket which another part closes; None if there is none."""
    if len(parts) == 1 or _depth(text) != 0:
        return None
    cut = next((part for part in parts if _depth(part) != 0), None)
    return cut if cut is not None and _depth(cut) > 0 else None


def joined_by(text: str, labels: Container[str]) -> str | None:
    """The separator between the labels that a text has; None if it has other parts."""
    for separator in (*CERTAIN, *PATHS, *WORDS, *LOOSE):
        parts = [part for part in parts_between(text, separator) if part]
        if len(parts) > 1 and all(part in labels for part in parts):
            return separator
    return None


def seeming_separators(
    labels: Mapping[str, int], of_one: bool, is_unseen: bool, in_lists: bool
) -> Iterator[tuple[str, list[str]]]:
    """Separators that labels seem to have within, most certain first, each with the labels that have it.

    Args:
        labels: with their counts.
        of_one: whether a cell should hold one label.
        is_unseen: whether no cell had the separator of the config.
        in_lists: whether all labels stood in lists, so that a comma may belong to one.
    """
    known = list(labels)[:MOST]
    others = dict.fromkeys(found for label in known for found in _OTHER.findall(label))
    for separator in dict.fromkeys((*CERTAIN, *PATHS, *WORDS, *LOOSE, *others)):
        joined = [
            label for label in known if separator in label and sum(map(bool, parts_between(label, separator))) > 1
        ]
        if separator.startswith("\\"):  # a path may have it too: C\\new
            joined = [label for label in joined if len(separator) == 1 or _is_only(label, separator)]
        if joined and _is_likely(separator, joined, known, of_one, is_unseen, in_lists):
            yield separator, joined


def _is_only(label: str, separator: str) -> bool:
    return all(part[:1] in "nrt" for part in label.split("\\")[1:]) and label.count(separator) > 0


def _is_likely(
    separator: str, joined: Sequence[str], known: Sequence[str], of_one: bool, is_unseen: bool, in_lists: bool
) -> bool:
    cut = [list(filter(None, parts_between(label, separator))) for label in joined]
    alone = set(known) - set(joined)
    may_join_ids = separator in (" ", *CERTAIN) and not (of_one and separator == ",")  # 3,5 is a number too
    if may_join_ids and all(part.isdecimal() for parts in cut for part in parts):
        return True
    if separator in CERTAIN and (separator != "," or (is_unseen and not of_one and not in_lists)):
        return True
    are_labels = sum(all(part in alone for part in parts) for parts in cut)
    recurring = _recur(cut, alone)
    if separator in CERTAIN:
        return recurring
    if separator in ("/", ":") and recurring and all(len(parts) > 2 for parts in cut):
        return True  # paths
    if separator in PATHS and separator != "/":
        return recurring or (not of_one and len(joined) * 2 >= len(known))
    if separator in WORDS:
        return are_labels > 0 or (not of_one and (recurring or (is_unseen and len(joined) * 2 >= len(known))))
    if separator in LOOSE:
        parts = alone.union(*cut)
        return len(parts) < len(known) and len(joined) > of_one
    return are_labels > 0 and (not of_one or are_labels > 1)


def _recur(cut: Iterable[Sequence[str]], alone: Container[str]) -> bool:
    """Whether a part is a label of its own, or occurs in two labels."""
    seen: set[str] = set()
    for parts in cut:
        if any(part in alone or part in seen for part in parts):
            return True
        seen.update(parts)
    return False


def _depth(text: str) -> int:
    return sum(text.count(mark) for mark in "([{") - sum(text.count(mark) for mark in ")]}")
