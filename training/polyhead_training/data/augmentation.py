"""Augmentation: copies of training rows, with the texts that the user's functions make of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from polyhead.encode import UnreadableTextError, read_text
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.rows import Row


class Augmentation:
    """Makes copies of training rows with other texts; the same seed makes the same copies.

    Args:
        names: functions, ``package.module:function``, called as ``function(text, random.Random)``.
        copies: of each row, by each function.

    Raises:
        ConfigError: a name is no function.
    """

    def __init__(self, names: Sequence[str], copies: int, seed: int) -> None:
        self.functions = [UserFunction.named(name, "data.augment") for name in names]
        self.copies, self.seed = copies, seed
        self.made = 0
        self.blank = self.held_out = 0

    @property
    def note(self) -> str:
        """What was done so far."""
        blank = f"; {self.blank} more were blank and left out" if self.blank else ""
        held_out = f"; {self.held_out} more had the text of a held-out row and were left out" if self.held_out else ""
        return f"augment: added {self.made} training rows{blank}{held_out}"

    def copies_of(self, row: Row, number: int, place: str, is_held_out: Callable[[str], bool]) -> Iterator[Row]:
        """The copies of the training row with this number, but those whose text is held out."""
        for position, function in enumerate(self.functions):
            for copy in range(self.copies):
                generator = random.Random(f"{self.seed} {position} {function.name} {number} {copy}")
                text = function.text(row["text"], generator, place=place)
                try:
                    text = read_text(text)
                except UnreadableTextError:
                    self.blank += 1
                    continue
                if is_held_out(text):
                    self.held_out += 1
                    continue
                self.made += 1
                yield row | {"text": text}
