"""What a cell means: unknown, labels or a number; or an error that names the row. All rules for labels begin here.

`CellReader` reads the cells of one head in this order: texts that mean unknown, lists and dicts in any spelling
(`polyhead_rows.spelling`, `structures`), vectors, other forms of several labels (`text_forms`), separators; then each
label: blanks, Unicode form, names, transforms. What was assumed, left out or changed is counted in `CellReader.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyhead.schema import HeadKind
from polyhead.template import as_text
from polyhead_rows.spelling import SpellingError, looks_spelled, read_spelled, shortened
from polyhead_rows.table import value_at
from polyhead_training.config import HeadConfig
from polyhead_training.data.cell_notes import CellNotes
from polyhead_training.data.label_names import LabelSpelling, NameTable
from polyhead_training.data.scalars import MISSING, evened, is_nothing, number_in, share_of
from polyhead_training.data.separators import cut_bracket, line_parts, parts_between
from polyhead_training.data.structures import is_structure, parts_of
from polyhead_training.data.text_forms import (
    FormError,
    TextForm,
    partly_quoted,
    quoted_parts,
    read_form,
    unescaped,
)
from polyhead_training.data.vectors import VectorReader
from polyhead_training.errors import BadRowError

Cell = list[str] | float | None
"""A head's labels of one row (at most one if it is single_label), or the number of a regression; None if unknown."""

Parts = list[Any] | None
"""What a cell holds, before it becomes labels or a number; None if nothing is known."""

EXAMPLES = {HeadKind.SINGLE_LABEL: '["a"]', HeadKind.MULTI_LABEL: '["a", "b"]', HeadKind.REGRESSION: "4.5"}


class CellReader:
    """Reads the cells of one head.

    Args:
        known: labels of the model, in an evaluation. Each is that label, whatever it looks like.

    Attributes:
        columns: the columns that it needs.
        column: their name for messages.
        notes: what was assumed, left out or changed so far.
        fixed_labels: all labels in index order, if the config gives their columns or positions.

    Raises:
        ConfigError: a function cannot be imported.
    """

    def __init__(self, config: HeadConfig, known: Iterable[str] = ()) -> None:
        self.config = config
        self.columns = tuple(config.columns or [config.column or config.name])
        self.column = self.columns[0] if len(self.columns) == 1 else f"{self.columns[0]}…{self.columns[-1]}"
        self.notes = CellNotes()
        self._names = NameTable.of(config)
        self._missing = frozenset(map(str.casefold, MISSING if config.missing is None else config.missing))
        # What the config names is that label, whatever it looks like.
        self._known = frozenset([*(config.labels or ()), *(config.positions or ()), *self._names.names])
        self._known |= frozenset([*(config.columns or ()), *known])
        self._pattern = None if config.pattern is None else re.compile(config.pattern)
        self._spelling = LabelSpelling(config, self._names, self._known)
        self._vectors = VectorReader(config, self._names, self._known)
        fixed = config.columns or config.positions
        place = f"heads.{config.name}"
        self.fixed_labels = (
            None if fixed is None else [self._spelling.label_of(name, place, self.notes) or name for name in fixed]
        )

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
        if self.is_out_of_scope(value):
            return None
        place = f"{row}: column {self.column!r}"
        found = self._parts(value, place)
        if self.config.kind == HeadKind.REGRESSION:
            return number_in(found, self.config.y_range, place)
        return None if found is None else self._labels(found, place)

    def is_out_of_scope(self, value: Any) -> bool:
        """Whether a cell says that the text belongs to none of the head's labels."""
        return self.config.out_of_scope is not None and evened(as_text(value) or "") == self.config.out_of_scope

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
        config, is_read = self.config, not self.config.as_written
        if is_read and (plain := unescaped(value)) != value:
            self.notes.add("escaped", place, value)
            value = plain
        text = evened(value)
        if not text:
            return self._empty(place)
        if text in self._known:
            return [value]
        if self._known and config.kind == HeadKind.MULTI_LABEL and self._pattern is None:
            parts = [part for part in parts_between(value, config.separator) if part]
            if parts and all(part in self._known for part in parts) and len(set(parts)) == len(parts):
                return list(parts)  # with a repetition it is perhaps a vector
        if self._is_missing(text, place):
            return None
        if self._pattern is not None:
            if found := self._pattern.findall(value):
                return [part for part in found if evened(part)]
            raise BadRowError(f"{place}: pattern {config.pattern!r} finds no label in {shortened(value)!r}")
        if is_read and looks_spelled(text):
            return self._spelled_parts(text, place)
        if is_read and (quoted := quoted_parts(text)) is not None:
            self.notes.add("spelled", place, value)
            return self._structure_parts(quoted, place)
        if (tokens := self._vectors.tokens_of(text)) is not None and (
            vector := self._vector(tokens, place)
        ) is not None:
            return vector
        if is_read and config.kind != HeadKind.REGRESSION:
            return self._read_parts(value, place)
        if config.kind == HeadKind.MULTI_LABEL:
            return self._known_parts([part for part in parts_between(value, config.separator) if part], place, value)
        return [value]

    def _read_parts(self, value: str, place: str) -> Parts:
        """The parts of a text as people and tools write labels."""
        config = self.config
        form = self._form(value, place)
        if form is not None and form.kind == "pairs" and not self._takes_pairs(form):
            form = None
        if form is not None:
            self.notes.add(form.kind, place, value)
            if isinstance(form.found, dict):
                self.notes.paired |= form.found.keys()
                return self._chosen(form.found, place, value)
            found = [f"#{part}" if f"#{part}" in self._known else part for part in form.found]
            if len(found) == 1 and config.kind == HeadKind.MULTI_LABEL:
                found = parts_between(found[0], config.separator)
            return self._known_parts(found, place, value)
        separators = (config.separator,) if config.kind == HeadKind.MULTI_LABEL else (",", ";", "|")
        quoted = next(filter(None, (partly_quoted(value, separator) for separator in separators)), None)
        if quoted is not None:
            self.notes.add("quoted", place, value)
            return self._known_parts(quoted, place, value)
        self.notes.texts += 1
        if config.kind != HeadKind.MULTI_LABEL:
            if len(line_parts(value)) > 1:
                self.notes.add("breaks", place, value)
            return [value]
        self.notes.has_separator |= config.separator in value
        parts = parts_between(value, config.separator)
        if len(parts) == 1 and len(lines := line_parts(value)) > 1:
            self.notes.add("lines", place, value)
            parts = lines
        if cut := cut_bracket(value, parts):
            raise BadRowError(
                f"{place}: {config.separator!r} cuts through the brackets of {shortened(value)!r} and leaves "
                f"{shortened(cut)!r}; set another separator or a pattern, write the labels as JSON, or set "
                "as_written = true to cut there"
            )
        if len(parts) > 1 and (vector := self._vector(parts, place)) is not None:
            return vector
        return self._known_parts([part for part in parts if evened(part)], place, value)

    def _form(self, value: str, place: str) -> TextForm | None:
        try:
            return read_form(value)
        except FormError as error:
            raise BadRowError(
                f"{place}: {shortened(value)!r} cannot be read: {error}; write the labels as JSON, such as "
                f"{EXAMPLES[self.config.kind]}, or set as_written = true if all of it is the label"
            ) from None

    def _read_elements(self, parts: Sequence[Any], place: str) -> list[Any] | dict[str, float]:
        """The parts of a list, each of which may be written as a text of a cell is."""
        found: list[Any] = []
        shares: dict[str, float] = {}
        is_read = not self.config.as_written and self.config.kind != HeadKind.REGRESSION
        for part in parts:
            if not isinstance(part, str) or part in self._known or not is_read:
                found.append(part)
                continue
            plain = unescaped(part)
            if plain != part:
                self.notes.add("escaped", place, part)
            form = self._form(plain, place)
            if form is None or isinstance(form.found, dict):
                found.append(plain)
                shares |= form.found if form is not None and isinstance(form.found, dict) else {}
            else:
                self.notes.add(form.kind, place, part)
                found += form.found
        if len(shares) == len(parts) > 1:
            self.notes.add("pairs", place, list(parts))
            self.notes.paired |= shares.keys()
            return shares
        return found

    def _takes_pairs(self, form: TextForm) -> bool:
        """Whether pairs are labels with shares; ``Stage: 1`` is one label, and a separator may stand in each pair."""
        if self.config.kind == HeadKind.SINGLE_LABEL:
            return len(form.found) > 1
        return self.config.separator.strip() not in (":", "=", "->", "=>")

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
                f"{EXAMPLES[self.config.kind]}, or set as_written = true if brackets belong to the label"
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
        elements = self._read_elements(found, place)
        if isinstance(elements, dict):
            return self._chosen(elements, place, value)
        return self._known_parts(elements, place, value)

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
        """The labels of a vector; None if the parts are none."""
        shares = self._vectors.shares_of(parts, place)
        if shares is None:
            return None
        self.notes.add("vector", place, list(parts))
        return self._chosen(shares, place, list(parts))

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
        every = [label for part in parts if (label := self._spelling.label_of(part, place, self.notes))]
        labels = list(dict.fromkeys(every))
        if len(labels) < len(every):
            self.notes.add("repeated", place, list(parts))
        if self.config.kind == HeadKind.MULTI_LABEL:
            return labels
        if len(labels) > 1:
            raise BadRowError(
                f"{place}: a single_label head needs one label, got {len(labels)}: {shortened(repr(labels))}; a "
                "multi_label head takes several, and as_written = true takes a text as one label"
            )
        if not labels:
            self.notes.add("nothing", place)
        return labels or None
