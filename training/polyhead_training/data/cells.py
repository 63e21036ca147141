"""What a cell means: unknown, labels or a number; or an error that names the row. All rules for labels begin here.

`CellReader` reads the cells of one head in this order: texts that mean unknown, lists and dicts in any spelling
(`polyhead_rows.spelling`, `Structure`), separators; then each label: blanks, Unicode form, names, transforms. What was
assumed, left out or changed is counted in `CellReader.notes`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.schema import HeadKind, is_unicode
from polyhead.template import as_text
from polyhead_rows.spelling import SpellingError, looks_spelled, read_spelled, shortened
from polyhead_rows.table import value_at
from polyhead_training.config import HeadConfig
from polyhead_training.data.cell_notes import CellNotes
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.label_names import NameTable
from polyhead_training.data.scalars import (
    LABEL_TRANSFORMS,
    MISSING,
    evened,
    is_nothing,
    label_text,
    number_of,
    share_of,
)
from polyhead_training.data.separators import cut_bracket, line_parts, parts_between, quoted_parts, tag_parts
from polyhead_training.data.structures import is_structure, parts_of
from polyhead_training.errors import BadRowError

Cell = list[str] | float | None
"""A head's labels of one row (at most one if it is single_label), or the number of a regression; None if unknown."""

Parts = list[Any] | None
"""What a cell holds, before it becomes labels or a number; None if nothing is known."""

LARGEST = float(np.finfo(np.float32).max)  # labels are stored as float32
EXAMPLES = {HeadKind.SINGLE_LABEL: '["a"]', HeadKind.MULTI_LABEL: '["a", "b"]', HeadKind.REGRESSION: "4.5"}


class CellReader:
    """Reads the cells of one head.

    Attributes:
        columns: the columns that it needs.
        column: their name for messages.
        notes: what was assumed, left out or changed so far.
        fixed_labels: all labels in index order, if the config gives their columns or positions.

    Raises:
        ConfigError: a function or a file of names cannot be read.
    """

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.columns = tuple(config.columns or [config.column or config.name])
        self.column = self.columns[0] if len(self.columns) == 1 else f"{self.columns[0]}…{self.columns[-1]}"
        self.notes = CellNotes()
        self._names = NameTable.of(config)
        self._missing = frozenset(map(str.casefold, MISSING if config.missing is None else config.missing))
        # What the config names is that label, whatever it looks like.
        self._known = frozenset([*(config.labels or ()), *(config.positions or ()), *self._names.names])
        self._known |= frozenset(config.columns or ())
        self._pattern = None if config.pattern is None else re.compile(config.pattern)
        self._transforms = [
            LABEL_TRANSFORMS.get(name)
            or UserFunction.named(name, f"heads.{config.name}.label_transforms", tuple(LABEL_TRANSFORMS))
            for name in config.label_transforms
        ]
        self._positions = config.positions
        if config.names is None and config.labels is not None and not {"0", "1"} & set(config.labels):
            self._positions = config.positions or config.labels
        fixed = config.columns or config.positions
        place = f"heads.{config.name}"
        self.fixed_labels = None if fixed is None else [self._label(name, place) or name for name in fixed]

    def read_row(self, fields: Mapping[str, Any], row: str) -> Cell:
        """The head's labels or number in a row of a file.

        Args:
            row: its place, for messages.

        Raises:
            BadRowError: a cell holds neither; it names row and column.
        """
        if self.config.columns is None:
            return self.read(value_at(fields, self.column), row)
        shares = {name: self._share(value_at(fields, name), f"{row}: column {name!r}") for name in self.columns}
        known = {name: share for name, share in shares.items() if share is not None}
        if len(known) < len(shares):
            if known:
                self.notes.add("partly", row)
            return None
        return self._labels(self._chosen(known, row, None), f"{row}: columns {self.column}")

    def read(self, value: Any, row: str) -> Cell:
        """The labels or the number of one cell; see `read_row`."""
        place = f"{row}: column {self.column!r}"
        found = self._parts(value, place)
        if self.config.kind == HeadKind.REGRESSION:
            return self._number(found, place)
        return None if found is None else self._labels(found, place)

    def parts_as_spelled(self, value: Any) -> list[str | None]:
        """The labels of a cell as the file spells them; the text of a cell that holds none."""
        kept, self.notes = self.notes, CellNotes()
        try:
            found = self._parts(value, "")
        except BadRowError:
            found = [value]
        finally:
            self.notes = kept
        return [as_text(part) for part in ([value] if found is None else found)]

    def _parts(self, value: Any, place: str) -> Parts:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise BadRowError(f"{place}: is not UTF-8, got {shortened(repr(value))}") from None
        if isinstance(value, str):
            return self._text_parts(value, place)
        if is_nothing(value):
            return None
        if is_structure(value):
            return self._structure_parts(value, place)
        if self._is_missing(value, place):
            return None
        if self.config.kind == HeadKind.MULTI_LABEL:
            raise BadRowError(f"{place}: a multi_label head needs a list of labels or a text, got {value!r}")
        return [value]

    def _text_parts(self, value: str, place: str) -> Parts:
        if value in self._known:
            return [value]
        config, text = self.config, evened(value)
        if not text:
            return self._empty(place)
        if self._is_missing(text, place):
            return None
        if self._pattern is not None:
            if found := self._pattern.findall(value):
                return [part for part in found if evened(part)]
            raise BadRowError(f"{place}: pattern {config.pattern!r} finds no label in {shortened(value)!r}")
        if config.brackets == "list" and looks_spelled(text):
            return self._spelled_parts(text, place)
        if config.brackets == "list" and (quoted := quoted_parts(text)) is not None:
            self.notes.add("spelled", place, value)
            return self._structure_parts(quoted, place)
        if config.positions is not None:
            return self._vector(re.split(r"[\s,;|]+", text), place)
        if config.kind != HeadKind.MULTI_LABEL:
            self.notes.texts += 1
            return [value]
        if config.brackets == "list" and (tags := tag_parts(text)) is not None:
            return tags
        self.notes.texts += 1
        self.notes.has_separator |= config.separator in value
        parts = parts_between(value, config.separator)
        if len(parts) == 1 and len(lines := line_parts(value)) > 1:
            self.notes.add("lines", place, value)
            parts = lines
        if config.brackets == "list" and (cut := cut_bracket(value, parts)):
            raise BadRowError(
                f"{place}: {config.separator!r} cuts through the brackets of {shortened(value)!r} and leaves "
                f"{shortened(cut)!r}; set another separator or a pattern, write the labels as JSON, or set "
                'brackets = "text"'
            )
        if len(parts) > 1 and (vector := self._vector(parts, place)) is not None:
            return vector
        return self._known_parts([part for part in parts if evened(part)], place, value)

    def _empty(self, place: str) -> Parts:
        """What an empty cell means."""
        means_none = self.config.kind == HeadKind.MULTI_LABEL and self.config.empty_cells != "unknown"
        self.notes.add("none" if means_none else "empty", place)
        return [] if means_none else None

    def _spelled_parts(self, value: str, place: str) -> Parts:
        try:
            found = read_spelled(value)
        except SpellingError as error:
            raise BadRowError(
                f"{place}: {shortened(value)!r} begins like a list or a dict, but {error}; write it as JSON, such as "
                f'{EXAMPLES[self.config.kind]}, or set brackets = "text" if brackets belong to the label'
            ) from None
        self.notes.add("spelled", place, value)
        if is_structure(found):
            return self._structure_parts(found, place)
        return None if found is None else [found]

    def _structure_parts(self, value: Any, place: str) -> Parts:
        """The parts of a list or a dict."""
        found = parts_of(value, place, self.notes, self.config.at_least)
        if found is None:
            return None
        if isinstance(found, dict):  # of shares
            return self._chosen(found, place, value)
        if (vector := self._vector(found, place)) is not None:
            return vector
        return self._known_parts(found, place, value)

    def _known_parts(self, parts: Sequence[Any], place: str, value: Any) -> Parts:
        """The parts without those that mean unknown; None if all do."""
        found, blank, nulls = [], 0, 0
        for part in parts:
            if is_nothing(part):
                nulls += 1
                continue
            if self._is_missing(part, place):
                continue
            if isinstance(part, str) and part not in self._known and not evened(part):
                blank += 1
                continue
            found.append(part)
        if parts and blank == len(parts):  # what splitting an empty text gives
            return self._empty(place)
        if parts and not found:
            self.notes.add("hollow", place, value)
            return None
        if blank or nulls:
            self.notes.add("left_out", place, value)
        return found

    def _vector(self, parts: Sequence[Any], place: str) -> Parts:
        """The labels of a vector with 0, 1 or a share per position; None if the parts are no such vector.

        Raises:
            BadRowError: they are one, but nothing names its positions, or their number differs.
        """
        config, names = self.config, self._positions
        if config.positions is None:
            if len(parts) < 2 or config.kind == HeadKind.REGRESSION or not all(map(_is_digit, parts)):
                return None
            shares = [share_of(part) for part in parts]
            repeats = len(set(shares)) < len(parts)
            if config.names is not None:  # without a repetition they are ids
                names = self._names.in_order() if repeats else None
            if names is None or len(names) != len(parts):
                is_certain = all(isinstance(part, bool) for part in parts) or not set(shares) <= {0, 1} or repeats
                if not is_certain or {"0", "1"} <= frozenset(config.labels or ()):
                    return None  # perhaps the ids 0 and 1; `check_labels` looks at the whole column
                raise BadRowError(
                    f"{place}: {shortened(repr(list(parts)))} seems to have a number per label; name the labels in "
                    f'this order: positions = ["...", ...] ({len(parts)} names)'
                )
        names = names or []
        if len(parts) != len(names):
            raise BadRowError(
                f"{place}: a vector must have a number for each of the {len(names)} positions, got {len(parts)}: "
                f"{shortened(repr(list(parts)))}"
            )
        found = {}
        for name, part in zip(names, parts, strict=True):
            share = share_of(part)
            if share is None:
                raise BadRowError(f"{place}: a vector must hold 0, 1 or shares between them, got {part!r}")
            found[name] = share
        self.notes.add("vector", place, list(parts))
        return self._chosen(found, place, list(parts))

    def _chosen(self, shares: Mapping[str, float], place: str, value: Any) -> list[Any]:
        """The labels whose share is large enough."""
        if any(0 < share < 1 for share in shares.values()):
            self.notes.add("share", place, value)
        return [name for name, share in shares.items() if share >= self.config.at_least]

    def _share(self, value: Any, place: str) -> float | None:
        """The cell of a column that stands for one label; None if it is unknown."""
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and not evened(value):
            means_none = self.config.empty_cells == "no_labels"
            self.notes.add("none" if means_none else "empty", place)
            return 0.0 if means_none else None
        if is_nothing(value):
            return 0.0 if self.config.empty_cells == "no_labels" else None
        if not is_structure(value) and self._is_missing(value, place):
            return None
        share = share_of(value)
        if share is None:
            raise BadRowError(
                f"{place}: a column of one label must hold 0 or 1, true or false, or a share between them, got "
                f'{shortened(repr(value))}; missing = ["..."] names what means unknown'
            )
        return share

    def _is_missing(self, value: Any, place: str) -> bool:
        """Whether a text or number means unknown. It is counted."""
        word = evened(as_text(value) or "")
        if word.casefold() not in self._missing or word in self._known:
            return False
        self.notes.words[word] += 1
        self.notes.add("missing", place)
        return True

    def _labels(self, parts: Sequence[Any], place: str) -> list[str] | None:
        every = [label for part in parts if (label := self._label(part, place))]
        labels = list(dict.fromkeys(every))
        if len(labels) < len(every):
            self.notes.add("repeated", place, list(parts))
        if self.config.kind == HeadKind.MULTI_LABEL:
            return labels
        if len(labels) > 1:
            raise BadRowError(
                f"{place}: a single_label head needs one label, got {len(labels)}: {shortened(repr(labels))}; a "
                "multi_label head takes several"
            )
        if not labels:
            self.notes.add("nothing", place)
        return labels or None

    def _label(self, value: Any, place: str) -> str:
        """The label; empty if nothing is left of it."""
        label = label_text(value, place)
        if label not in self._known:
            plain = evened(label)
            if plain != label:
                self.notes.add("evened", place, label)
            label = plain
        label = self._names.name_of(label, place)
        for transform in self._transforms:
            label = transform.text(label, place=place) if isinstance(transform, UserFunction) else transform(label)
        if not is_unicode(label):
            raise BadRowError(f"{place}: a label must be valid Unicode, got {label!r}")
        return label if label in self._known or evened(label) else ""

    def _number(self, found: Parts, place: str) -> float | None:
        if not found:
            return None
        if len(found) > 1:
            raise BadRowError(f"{place}: a regression needs one number, got {len(found)}: {shortened(repr(found))}")
        number = number_of(found[0])
        if not abs(number) <= LARGEST:
            raise BadRowError(
                f"{place}: a regression needs finite numbers in float32's range, written as 4 or 12.5, got "
                f"{shortened(repr(found[0]))}"
            )
        lowest, highest = self.config.y_range or (-math.inf, math.inf)
        if not lowest <= number <= highest:
            raise BadRowError(f"{place}: must lie in the y_range {lowest:g} to {highest:g}, got {found[0]!r}")
        return number


def _is_digit(part: Any) -> bool:
    """Whether a part may be one of a vector: a share as number, or ``0`` or ``1`` as text."""
    return part in ("0", "1", "0.0", "1.0") if isinstance(part, str) else share_of(part) is not None
