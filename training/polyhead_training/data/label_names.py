"""How a label is spelled in the end, and the table of names: what ids and other spellings in a file are called."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from polyhead.schema import is_unicode
from polyhead_rows.spelling import shortened
from polyhead_training.config import HeadConfig
from polyhead_training.data.cell_notes import CellNotes
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.scalars import LABEL_TRANSFORMS, evened, label_text, whole_number, without_ends
from polyhead_training.errors import BadRowError

_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class NameTable:
    """Names by spelling.

    Attributes:
        names: by the spelling in the file; empty if the config gives none.
        is_complete: whether every label must be in it.
        field: of the config, for messages.
        called: what is a name and no id.
    """

    names: dict[str, str]
    is_complete: bool
    field: str
    called: frozenset[str]

    @classmethod
    def of(cls, config: HeadConfig) -> NameTable:
        """The table of a head."""
        names = config.names if isinstance(config.names, dict) else {}
        are_ids = bool(names) and all(map(_WHOLE.fullmatch, names))
        is_complete = config.unnamed == "error" or (config.unnamed is None and are_ids)
        called = frozenset(names.values()) - names.keys()
        return cls(names, is_complete, f"heads.{config.name}.names", called)

    def name_of(self, label: str, place: str) -> str:
        """The label's name; the label itself if it is a name or needs none.

        Raises:
            BadRowError: it must have a name and has none.
        """
        if not self.names or label in self.called:
            return label
        for spelling in (label, whole_number(label)):
            if spelling in self.names:
                return self.names[spelling]
        if self.is_complete:
            known = ", ".join(map(repr, list(self.names)[:6])) + (", …" if len(self.names) > 6 else "")
            raise BadRowError(
                f"{place}: {self.field} has no name for {shortened(label)!r}, only for {known}; add it, or set "
                'unnamed = "keep"'
            )
        return label

    def in_order(self) -> list[str] | None:
        """The names of the ids 0, 1, 2, …; None if the table has other ids."""
        names = [self.names.get(str(number)) for number in range(len(self.names))]
        return None if None in names else [name for name in names if name is not None]


class LabelSpelling:
    """Makes a label of a value: text, blanks, Unicode form, separators at its ends, name, transforms.

    Args:
        known: texts that the config calls labels; they stay as they are.

    Raises:
        ConfigError: a function of `label_transforms` cannot be imported.
    """

    def __init__(self, config: HeadConfig, names: NameTable, known: Container[str]) -> None:
        self.config = config
        self._names = names
        self._known = known
        self._transforms = [
            LABEL_TRANSFORMS.get(name)
            or UserFunction.named(name, f"heads.{config.name}.label_transforms", tuple(LABEL_TRANSFORMS))
            for name in config.label_transforms
        ]

    def label_of(self, value: Any, place: str, notes: CellNotes) -> str:
        """The label; empty if nothing is left of it.

        Raises:
            BadRowError: it is no label, or has no name.
        """
        label = label_text(value, place)
        if label not in self._known:
            plain = evened(label)
            if plain != label:
                notes.add("evened", place, label)
            label = plain
            if not self.config.as_written and label not in self._known and (plain := without_ends(label)) != label:
                notes.add("ends", place, label)
                label = plain
        label = self._names.name_of(label, place)
        for transform in self._transforms:
            label = transform.text(label, place=place) if isinstance(transform, UserFunction) else transform(label)
        if not is_unicode(label):
            raise BadRowError(f"{place}: a label must be valid Unicode, got {label!r}")
        return label if label in self._known or evened(label) else ""
