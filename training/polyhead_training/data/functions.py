"""The user's own functions, which the config names as ``package.module:function``, and augmentation by them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyhead.encode import UnreadableTextError, read_text
from polyhead.errors import one_line
from polyhead_training.errors import ConfigError, DataError


@dataclass(frozen=True)
class UserFunction:
    """A function, the config field that names it, and its name. Errors name all of these and the row."""

    function: Callable[..., Any]
    field: str
    name: str

    @classmethod
    def named(cls, name: str, field: str, built_in: tuple[str, ...] = ()) -> UserFunction:
        """Imports the function.

        Args:
            built_in: what else the field may hold, for the message.

        Raises:
            ConfigError: the name is malformed, or it names nothing that can be called.
        """
        module, _, attribute = name.partition(":")
        if not module or not attribute:
            allowed = ", ".join((*built_in, "'package.module:function'"))
            raise ConfigError(f"{field} {name!r}: must be one of {allowed}")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
            raise ConfigError(
                f"{field} {name!r}: cannot be imported ({type(error).__name__}: {one_line(error)}); "
                "install its package or set PYTHONPATH"
            ) from error
        if not callable(function):
            raise ConfigError(f"{field} {name!r}: must be a function, got {type(function).__name__}")
        return cls(function, field, name)

    def call(self, *arguments: Any, place: str) -> Any:
        """Calls the function. If it raises an error, this raises a DataError that names the row."""
        try:
            return self.function(*arguments)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{place}: {self.field} {self.name!r} failed ({type(error).__name__}: {one_line(error)})"
            ) from error

    def text(self, *arguments: Any, place: str) -> str:
        """Calls it and checks that it returns a text."""
        text = self.call(*arguments, place=place)
        if not isinstance(text, str):
            raise DataError(f"{place}: {self.field} {self.name!r} must return a text, got {text!r}")
        return text


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

    def copies_of(
        self, row: dict[str, Any], number: int, place: str, is_held_out: Callable[[str], bool]
    ) -> Iterator[dict[str, Any]]:
        """The copies of the training row with this number, without those whose text is held out."""
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
