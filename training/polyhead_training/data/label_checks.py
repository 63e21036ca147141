"""Checks of all labels of a head: what looks alike, joined, like ids, like texts, or like a vector of 0 and 1."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from polyhead.schema import HeadKind
from polyhead_rows.spelling import shortened
from polyhead_training.config import HeadConfig
from polyhead_training.data.cell_notes import CellNotes
from polyhead_training.data.scalars import LABEL_TRANSFORMS, whole_number
from polyhead_training.data.separators import CERTAIN, SEPARATORS
from polyhead_training.errors import DataError

SHOWN = 4  # examples in a line
FEW_ROWS = 20  # fewer rows say nothing about ids
LONG = 80  # characters, on average: labels that long are texts

_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[\s_\-‐-―'’.]+(?=\w)|(?<=[^\W_])[\s_\-‐-―'’]+(?=[^\W\d_])")
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?")
_AROUND = " .:;!?\"'`“”‘’«»"


def check_labels(
    config: HeadConfig, counts: Mapping[str, int], labelled: int, notes: CellNotes, source: str
) -> Iterator[str]:
    """Lines that the user should read before training.

    Args:
        counts: of each label.
        labelled: how many rows have a label, or are known to have none.
        notes: of the head's cells.

    Raises:
        DataError: the labels are 0 and 1 of a vector or of a column per label.
    """
    is_named = config.names is not None or config.labels is not None
    if config.kind == HeadKind.MULTI_LABEL and not is_named and 0 < len(counts) <= 2 and counts.keys() <= {"0", "1"}:
        raise DataError(
            f"{source}: column {config.column or config.name!r} holds only 0 and 1 for the multi_label head "
            f'{config.name!r}; for one column per label set columns = ["...", ...], for vectors positions = '
            '["...", ...], for ids names = ["...", ...]; a question of yes or no is a single_label head'
        )
    yield from _lookalikes(counts)
    yield from _joined(config, counts, notes)
    if counts and all(whole_number(label) != label for label in counts):
        yield (
            f"its labels are whole numbers with a point, such as {min(counts)!r}, as data frames write them if a cell "
            'is missing; label_transforms = ["whole_number"] takes the point away'
        )
    if len(counts) * 2 > labelled >= FEW_ROWS:
        yield f"{len(counts)} labels in {labelled} rows: does the column hold ids, texts or numbers instead of labels?"
    if counts and sum(map(len, counts)) > LONG * len(counts):
        longest = max(counts, key=len)
        yield f"its labels are as long as texts, such as {shortened(longest)!r}: is it the right column?"
    if config.kind == HeadKind.MULTI_LABEL and not is_named and counts and all(map(str.isdecimal, counts)):
        yield 'its labels are numbers; names = ["...", ...] or a file of names says what they are called'


def like(label: str) -> str:
    """Equal for labels that look like one: case, width, blanks, hyphens, quotes, a final point, zeros of a number."""
    folded = unicodedata.normalize("NFKC", label).casefold().strip(_AROUND)
    if _NUMBER.fullmatch(folded):
        return str(Decimal(folded).normalize())
    return _BETWEEN_LETTERS.sub("", folded) or label


def mending_key(spellings: Sequence[str], wanted: str | None = None) -> str:
    """The key that makes one label of the spellings, of which the first is the most frequent one.

    Args:
        wanted: what the label must be; by default any of them.
    """
    for name, transform in LABEL_TRANSFORMS.items():
        made = {transform(spelling) for spelling in spellings}
        if len(made) == 1 and (wanted is None or wanted in made):
            return f'label_transforms = ["{name}"]'
    one = spellings[0] if wanted is None else wanted
    pairs = ", ".join(f"{_quoted(spelling)} = {_quoted(one)}" for spelling in spellings if spelling != one)
    are_ids = all(spelling.lstrip("+-").isdecimal() for spelling in spellings if spelling != one)
    return f"names = {{ {pairs} }}" + (' and unnamed = "keep"' if are_ids else "")


def _lookalikes(counts: Mapping[str, int]) -> Iterator[str]:
    groups = defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        groups[like(label)].append(label)
    found = [group for group in groups.values() if len(group) > 1]
    for group in found[:SHOWN]:
        spelled = ", ".join(f"{label!r} ({counts[label]})" for label in group[:6])
        yield f"labels look alike: {spelled}; to make them one: {mending_key(group[:6])}"
    if len(found) > SHOWN:
        yield f"labels look alike in {len(found) - SHOWN} more groups"


def _joined(config: HeadConfig, counts: Mapping[str, int], notes: CellNotes) -> Iterator[str]:
    """Several labels in one: their parts occur again and again, so that there are fewer parts than labels."""
    if not notes.texts or config.pattern is not None:
        return
    is_single = config.kind == HeadKind.SINGLE_LABEL
    for separator in SEPARATORS:
        if separator == config.separator and not is_single:
            continue
        joined = [label for label in counts if separator in label.strip(separator)]
        parts = {part.strip() for label in counts for part in label.split(separator) if part.strip()}
        is_sure = separator in CERTAIN and not notes.has_separator and not is_single
        if not joined or not (is_sure or (len(parts) < len(counts) and len(joined) > is_single)):
            continue
        rows = sum(counts[label] for label in joined)
        seen = f"{rows} cells such as {shortened(joined[0])!r} look like several labels joined by {separator!r}"
        if is_single:
            yield f"{seen}; a multi_label head with separator = {_quoted(separator)} takes them apart"
        else:
            without = "" if notes.has_separator else f", and none has {config.separator!r}"
            yield f"{seen}{without}; separator = {_quoted(separator)} takes them apart, or pattern finds the labels"
        return


def _quoted(text: str) -> str:
    """As TOML spells it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'
