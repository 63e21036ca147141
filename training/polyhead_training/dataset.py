"""``polyhead-dataset``: builds the data sets that the examples train on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from polyhead_training.debian import build_debian
from polyhead_training.errors import DataError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def datasets() -> None:
    """Build a data set to train on."""


@app.command()
def debian(
    output: Annotated[Path, typer.Argument(help="Folder for train.jsonl, validation.jsonl and test.jsonl.")],
) -> None:
    """Debian's package descriptions with section, role and tags, read through apt; needs no root."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            summary = build_debian(output, progress=progress)
    except DataError as error:
        print(f"polyhead-dataset: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    rows = ", ".join(f"{count} {split}" for split, count in summary.rows.items())
    labels = f"{len(summary.sections)} sections, {len(summary.roles)} roles, {len(summary.tags)} tags"
    print(f"{output}: {rows} rows; {labels}")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
