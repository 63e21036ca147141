"""What the five commands share: the typer application, printing, errors, signals, and the ``--example`` option."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from polyhead.errors import PolyheadError, one_line
from polyhead.interrupt import INTERRUPTED, interruptible

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
    """A function that prints a line to the console unchanged, without markup or wrapping."""
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    except (PolyheadError, OSError) as error:
        print(f"{command}: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None


def example_option(example: str, content: str) -> Any:
    """A typer option that prints `example` and exits before any other argument is checked.

    Args:
        content: what the example is, for the help text.
    """

    def print_example(wanted: bool) -> None:
        if wanted:
            print(example, end="")
            raise typer.Exit

    return typer.Option(
        "--example", help=f"Print {content} and exit.", is_eager=True, callback=print_example, allow_from_autoenv=False
    )
