"""What `polyhead-serve` and `polyhead-deploy` share: the typer app and options in seconds."""

from __future__ import annotations

import math
from typing import Any

import typer


def new_app(variables: str) -> typer.Typer:
    """An app whose options are also environment variables with this prefix."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"auto_envvar_prefix": variables, "max_content_width": 120},
    )


def seconds(about: str, least: float = 0.001) -> Any:
    """An option that is a finite number of seconds."""
    return typer.Option(min=least, callback=_finite, help=about)


def _finite(value: float) -> float:
    if not math.isfinite(value):  # `min` refuses nan, but not inf, which no timer takes
        raise typer.BadParameter(f"must be a finite number, got {value}")
    return value
