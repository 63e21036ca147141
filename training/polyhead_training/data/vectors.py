"""Vectors: a cell with a 0, a 1 or a share for each position, and the names of the positions."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any

from polyhead.schema import HeadKind
from polyhead_rows.spelling import shortened
from polyhead_training.config import HeadConfig
from polyhead_training.data.label_names import NameTable
from polyhead_training.data.scalars import are_switches, label_text, share_of
from polyhead_training.data.text_forms import vector_tokens
from polyhead_training.errors import BadRowError


class VectorReader:
    """Reads the vectors of one head.

    Args:
        known: texts that the config calls labels.
    """

    def __init__(self, config: HeadConfig, names: NameTable, known: Container[str]) -> None:
        self.config = config
        self._names = names
        self._known = known
        self._positions = config.positions
        if config.names is None and config.labels is not None and not {"0", "1"} & set(config.labels):
            self._positions = config.positions or config.labels

    def tokens_of(self, text: str) -> list[str] | None:
        """The parts of a text that may be a vector; None if it cannot be one."""
        if self.config.kind == HeadKind.REGRESSION:
            return None
        if self._positions is not None and len(text) == len(self._positions) and set(text) <= {"0", "1"}:
            return list(text)
        if self.config.positions is not None:
            return re.split(r"[\s,;|]+" if "." in text else r"[\s,;|/:_-]+", text)
        return None if self.config.as_written else vector_tokens(text)

    def shares_of(self, parts: Sequence[Any], place: str) -> dict[str, float] | None:
        """The share of each label; None if the parts are no vector.

        Raises:
            BadRowError: they are one, but nothing names its positions, or their number differs.
        """
        names = self._positions if self.config.positions is not None else self._guessed(parts, place)
        if names is None:
            return None
        if len(parts) != len(names):
            raise BadRowError(
                f"{place}: a vector must have a number for each of the {len(names)} positions, got {len(parts)}: "
                f"{shortened(repr(list(parts)))}"
            )
        shares = {}
        for name, part in zip(names, parts, strict=True):
            share = share_of(part)
            if share is None:
                raise BadRowError(f"{place}: a vector must hold 0, 1 or shares between them, got {part!r}")
            shares[name] = share
        return shares

    def _guessed(self, parts: Sequence[Any], place: str) -> list[str] | None:
        """The names of the positions if the config has no `positions`."""
        config = self.config
        if len(parts) < 2 or config.kind == HeadKind.REGRESSION or not are_switches(parts):
            return None
        if config.names is None and all(label_text(part, place) in self._known for part in parts):
            return None
        names, shares = self._positions, [share_of(part) for part in parts]
        repeats = len(set(shares)) < len(parts)
        if config.names is not None:  # without a repetition they are ids
            names = self._names.in_order() if repeats else None
        if names is not None and len(names) == len(parts):
            return names
        is_certain = all(isinstance(part, bool) for part in parts) or not set(shares) <= {0, 1} or repeats
        if not is_certain:
            return None  # perhaps the ids 0 and 1; `check_labels` looks at the whole column
        raise BadRowError(
            f"{place}: {shortened(repr(list(parts)))} seems to have a number per label; name the labels in this order: "
            f'positions = ["...", ...] ({len(parts)} names), or set as_written = true if they are labels'
        )
