"""What the five commands share: the typer application, printing, errors, signals, and options that print and exit."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console

from polyhead.errors import PolyheadError, one_line
from polyhead.files import why_full
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead.terminal import printable

WRONG_INPUT = 2


def command_app(name: str) -> typer.Typer:
    """A typer application; the variable ``POLYHEAD_TRAIN_OUTPUT`` sets ``--output`` of ``polyhead-train``, and so on.

    Options that destroy something must be declared with ``allow_from_autoenv=False``.
    """
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"auto_envvar_prefix": name.upper().replace("-", "_")},
    )


def printer(console: Console) -> Callable[[str], None]:
    """A function that prints lines without markup or wrapping. What they quote cannot steer the terminal."""

    def show(lines: str) -> None:
        console.print("\n".join(map(printable, lines.split("\n"))), highlight=False, markup=False, soft_wrap=True)

    return show


def interrupt_signals() -> list[signal.Signals]:
    """SIGINT and SIGTERM; SIGINT alone under torchrun.

    Under torchrun, a process that waits for others runs no handler, and torchrun itself uses SIGTERM to end all.
    """
    return [signal.SIGINT] if int(os.environ.get("WORLD_SIZE", "1")) > 1 else [signal.SIGINT, signal.SIGTERM]


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Ends the command with one line: after wrong input with exit code 2, after Ctrl-C or SIGTERM with 130."""
    try:
        with interruptible(interrupt_signals()):
            yield
    except KeyboardInterrupt:
        print(f"{command}: interrupted; nothing is written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        is_full = why_full(error) is not None
        if not is_full and not isinstance(error, PolyheadError | OSError):
            raise
        rest = "; nothing was replaced: make room and run the command again" if is_full else ""
        print(f"{command}: {printable(one_line(error))}{rest}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None


def example_option(example: str, content: str) -> Any:
    """A typer option that prints `example` and exits before any other argument is checked.

    Args:
        content: what the example is, for the help text.
    """
    return _printing_option("--example", lambda: example, content)


def reference_option(config: type[BaseModel]) -> Any:
    """A typer option that prints the reference of a config's keys and exits."""

    def reference() -> str:
        from polyhead_training.reference import config_reference

        return config_reference(config)

    return _printing_option("--reference", reference, "every key of the config with its default, as Markdown,")


def _printing_option(name: str, text: Callable[[], str], content: str) -> Any:
    def print_text(wanted: bool) -> None:
        if wanted:
            print(text(), end="")
            raise typer.Exit

    return typer.Option(
        name, help=f"Print {content} and exit.", is_eager=True, callback=print_text, allow_from_autoenv=False
    )
