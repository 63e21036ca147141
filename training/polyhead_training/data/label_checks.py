"""Checks of all labels of a head: what looks alike, joined, damaged, like ids, like texts, or like a vector."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from polyhead.schema import HeadKind
from polyhead_rows.spelling import shortened
from polyhead_training.config import HeadConfig
from polyhead_training.data.cell_notes import CellNotes
from polyhead_training.data.scalars import LABEL_TRANSFORMS, SWITCHES, whole_number
from polyhead_training.data.separators import PATHS, seeming_separators
from polyhead_training.errors import DataError

SHOWN = 4  # examples in a line
FEW_ROWS = 20  # fewer rows say nothing about ids
LONG = 80  # characters, on average: labels that long are texts

_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[\s_\-‐-―'’.]+(?=\w)|(?<=[^\W_])[\s_\-‐-―'’]+(?=[^\W\d_])")
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?")
_AROUND = " .:;!?\"'`“”‘’«»"
_BEFORE = re.compile(r"(?:and|or|und|oder|et|ou|&)\s+|[-*•·]\s+|\(?\d{1,2}[.)]\s+(?=\D)")
_PLACEHOLDER = re.compile(r"(?:label|class|category)[ _-]?\d+", re.IGNORECASE)  # as transformers names labels
_VECTOR = re.compile(r"[01](?:\W*[01])+")
_WORDS = ({"0", "1"}, {"0.0", "1.0"}, *SWITCHES)
_ESCAPES = {
    "escapes of addresses": re.compile(r"%[0-9A-Fa-f]{2}"),
    "escapes of programs": re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[\"'])"),
    "marks of a wrong encoding": re.compile("\ufffd|[ÃÂ][\u0080-\u00bf]|â€"),
}


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
    if config.kind == HeadKind.MULTI_LABEL and not is_named:
        _refuse_vectors(config, counts, source)
    _refuse_half_pairs(config, counts, notes, source)
    if config.kind == HeadKind.SINGLE_LABEL and len(counts) > 1 and _are_vectors(counts):
        yield f'its labels look like vectors, such as {min(counts)!r}; positions = ["...", ...] names their positions'
    yield from _lookalikes(counts)
    yield from _joined(config, counts, notes)
    yield from _damaged(counts)
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
    are_ids = counts and all(map(str.isdecimal, counts)) and config.kind == HeadKind.MULTI_LABEL
    if not is_named and (are_ids or (counts and all(map(_PLACEHOLDER.fullmatch, counts)))):
        yield 'its labels are numbers; names = ["...", ...] or a file of names says what they are called'


def like(label: str) -> str:
    """Equal for labels that look like one: case, width, blanks, hyphens, quotes, a final point, zeros of a number."""
    folded = unicodedata.normalize("NFKC", label).casefold().strip(_AROUND)
    folded = _BEFORE.sub("", folded, count=1) if _BEFORE.match(folded) else folded
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


def _refuse_vectors(config: HeadConfig, counts: Mapping[str, int], source: str) -> None:
    words = {label.casefold() for label in counts}
    what = "only 0 and 1" if words <= {"0", "1"} else f"only {' and '.join(sorted(words))}"
    is_part = words and not any(len(word) == 1 and word.isalpha() for word in words)  # y and t alone are labels
    if not any(words == pair or (is_part and words < pair) for pair in _WORDS):
        if not _are_vectors(counts):
            return
        what = f"vectors such as {min(counts)!r}"
    raise DataError(
        f"{source}: column {config.column or config.name!r} holds {what} for the multi_label head {config.name!r}; for "
        'one column per label set columns = ["...", ...], for vectors positions = ["...", ...], for ids '
        'names = ["...", ...], for labels of these names labels = ["...", ...]; a question of yes or no is a '
        "single_label head"
    )


def _are_vectors(labels: Iterable[str]) -> bool:
    """Whether all are ``0100`` or ``0 1 0 0``, of one length; ``10`` and ``11`` are numbers."""
    return (
        len({len(label) for label in labels}) == 1
        and all(map(_VECTOR.fullmatch, labels))
        and any(len(label) > 2 or label.startswith("0") for label in labels)
    )


def _refuse_half_pairs(config: HeadConfig, counts: Mapping[str, int], notes: CellNotes, source: str) -> None:
    """Labels such as ``size:3`` beside ``size:1``, which was read as the label ``size`` with share 1."""
    if not notes.paired:
        return
    for label in counts:
        name, mark, _ = (part.strip() for part in re.sub(r"\s*(?:=>|->|=)\s*", ":", label).partition(":"))
        if mark and name in notes.paired:
            raise DataError(
                f"{source}: column {config.column or config.name!r}: {name!r} has shares in some cells, but also "
                f"stands in {shortened(label)!r}; set as_written = true if such pairs are labels, or write each "
                f'cell as JSON, such as {{"{name}": 1}}'
            )


def _joined(config: HeadConfig, counts: Mapping[str, int], notes: CellNotes) -> Iterator[str]:
    """Several labels in one."""
    if config.pattern is not None:
        return
    of_one = config.kind == HeadKind.SINGLE_LABEL
    is_unseen = not notes.has_separator
    for separator, joined in seeming_separators(counts, of_one, is_unseen, in_lists=not notes.texts):
        if separator == config.separator and not of_one and notes.texts:
            continue
        rows = sum(counts[label] for label in joined)
        seen = f"{rows} cells such as {shortened(joined[0])!r} look like several labels joined by {separator!r}"
        if separator in PATHS:
            seen += ", or like paths of a taxonomy, which has a head and a column per level"
        if of_one:
            yield f"{seen}; a multi_label head with separator = {_quoted(separator)} takes them apart"
        elif not notes.texts:
            yield f"{seen} within lists; a function in label_transforms or a correction of the file makes them one"
        else:
            without = f", and none has {config.separator!r}" if is_unseen else ""
            yield f"{seen}{without}; separator = {_quoted(separator)} takes them apart, or pattern finds the labels"
        return


def _damaged(counts: Mapping[str, int]) -> Iterator[str]:
    """Labels that were escaped, or read in a wrong encoding."""
    for what, pattern in _ESCAPES.items():
        if found := [label for label in counts if pattern.search(label)]:
            rows = sum(counts[label] for label in found)
            mend = "encoding in [data]" if "encoding" in what else "names or label_transforms"
            yield f"{rows} labels have {what}, such as {shortened(found[0])!r}; {mend} mends them"
    if found := [label for label in counts if re.match(r"(?:and|or|und|oder|&)\s+\S", label)]:
        yield f"labels begin with a joining word, such as {shortened(found[0])!r}; pattern finds the labels without it"
    numbered = [label for label in counts if re.match(r"\(?1[.)]\s", label)]
    if numbered and not any(re.match(r"\(?2[.)]\s", label) for label in counts):
        yield (
            f"labels begin with the number of a list, such as {shortened(numbered[0])!r}; pattern = "
            "'\\d+[.)] +(.*)' takes it off"
        )


def _quoted(text: str) -> str:
    """As TOML spells it."""
    return json.dumps(text, ensure_ascii=False)
