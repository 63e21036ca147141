"""The user's own functions, which the config names as ``package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyhead.errors import one_line
from polyhead_training.errors import ConfigError, DataError


@dataclass(frozen=True)
class UserFunction:
    """A function, the config's field that names it, and its name; errors tell all three and the row."""

    function: Callable[..., Any]
    field: str
    name: str

    @classmethod
    def named(cls, name: str, field: str, built_in: tuple[str, ...] = ()) -> UserFunction:
        """Imports the function.

        Args:
            built_in: what else the field may hold, for the message.

        Raises:
            ConfigError: the name is none, or nothing that can be called stands there.
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
        """Calls it; what it raises becomes a DataError that names the row."""
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
