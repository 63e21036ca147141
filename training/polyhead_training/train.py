"""``polyhead-train``: the command line of training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from polyhead.errors import PolyheadError
from polyhead_training.config import EXAMPLE, read_config

if TYPE_CHECKING:
    from polyhead_training.fit import TrainingResult

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="A config to start with:\n\n\b\n" + EXAMPLE.replace("\n\n", "\n\b\n"))
def train(
    config: Annotated[
        Path, typer.Argument(help="TOML file that names data, heads, model and output.", metavar="CONFIG.toml")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Takes the place of the config's output.", envvar="POLYHEAD_OUTPUT")
    ] = None,
    example: Annotated[
        bool,
        typer.Option(
            "--example",
            help="Print a config to start with, and stop.",
            is_eager=True,
            callback=lambda wanted: _print_example(wanted),
        ),
    ] = False,
) -> None:
    """Train a many-headed GPT-2 classifier from texts and labels, and write a checkpoint that describes itself."""
    console = Console()
    try:
        settings = read_config(config)
        if output is not None:
            settings = settings.model_copy(update={"output": output})
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        fit = _quiet_fit()
        result = fit(settings, say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
    except PolyheadError as error:
        print(f"polyhead-train: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    table = Table("split", "head", "scores", title="Reached")
    for split in ("validation", "test"):
        for head, scores in result.metrics.get(split, {}).items():
            table.add_row(
                split, head, "  ".join(f"{name} {value:.3f}" for name, value in scores.items() if name != "rows")
            )
    console.print(table)
    console.print(
        f"checkpoint: {settings.output} (engine within {result.engine_distance:.1e} of transformers)", highlight=False
    )
    console.print(f"next: polyhead-export {settings.output} --repository model_repository", highlight=False)


def _quiet_fit() -> Callable[..., TrainingResult]:
    """Imports what takes seconds, for which a typo need not wait, without its progress bars and reports."""
    import datasets
    import transformers

    from polyhead_training.fit import fit

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return fit


def _print_example(wanted: bool) -> None:
    if wanted:
        print(EXAMPLE, end="")
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
