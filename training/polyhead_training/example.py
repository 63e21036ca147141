"""``--example``: the option of a command line that prints a config to start with."""

from __future__ import annotations

from typing import Any

import typer


def example_option(example: str, what: str) -> Any:
    """A typer option that prints `example` and stops, before any other argument is asked for.

    Args:
        what: that is printed, for the help.
    """

    def print_example(wanted: bool) -> None:
        if wanted:
            print(example, end="")
            raise typer.Exit

    return typer.Option("--example", help=f"Print {what}, and stop.", is_eager=True, callback=print_example)
