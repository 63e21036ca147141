"""``polyhead-compare``: which head of which run is better on the same rows, and whether that is chance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from polyhead.files import replaced_folder
from polyhead_training.command_line import command_app, one_line_errors, printer
from polyhead_training.errors import ConfigError
from polyhead_training.evaluation.wording import number

if TYPE_CHECKING:
    from polyhead_training.evaluation.comparison import Comparison

EXAMPLE = """\
polyhead-compare runs/reviews runs/reviews-longer
polyhead-evaluate runs/a test.csv --output reports/a
polyhead-evaluate runs/b test.csv --output reports/b
polyhead-compare reports/a reports/b --output reports/a-and-b
"""
FILES = {"index.html", "comparison.json"}

app = command_app("polyhead-compare")


@app.command(epilog="Examples:\n\n\b\n" + EXAMPLE)
def compare_reports(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints of polyhead-train or reports of polyhead-evaluate; all are compared with the first."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the page. An older comparison is replaced.")] = Path(
        "comparison"
    ),
) -> None:
    """Compare runs on the rows that all of them evaluated, head by head.

    A difference counts only if a paired test finds it: McNemar's exact test for accuracy, a permutation test for
    micro F1 and mean absolute error. P values are corrected for the number of comparisons. Nothing is computed anew:
    the answers come from the predictions.parquet of each report.

    Writes index.html (one page, for a browser: also the rows that got better and worse) and comparison.json.
    """
    console = Console()
    with one_line_errors("polyhead-compare"):
        comparison = _compare(runs, output)
    _print(comparison, console)
    printer(console)(f"page: {output / 'index.html'}")


def _compare(paths: list[Path], output: Path) -> Comparison:
    """Compares and writes the page, in one step."""
    # Imported here because these imports take seconds; a typo must be reported before them.
    check_comparison_folder(output)
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such folder")
    from polyhead_training.evaluation.comparison import compare_runs
    from polyhead_training.evaluation.page import environment
    from polyhead_training.evaluation.reported_run import read_runs

    comparison = compare_runs(read_runs(paths))
    html = environment().get_template("comparison.html").render(vars(comparison))
    try:
        with replaced_folder(output) as fresh:
            (fresh / "index.html").write_text(html, encoding="utf-8")
            text = json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False, allow_nan=False)
            (fresh / "comparison.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error})") from error
    return comparison


def check_comparison_folder(path: Path) -> None:
    """Makes sure that writing a comparison to `path` replaces nothing but a comparison.

    Raises:
        ConfigError: something else is there.
    """
    if not path.exists():
        return
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {"a file"}
    if names and names != FILES:
        raise ConfigError(f"{path}: holds something that is no comparison and is not replaced; name another --output")


def _print(comparison: Comparison, console: Console) -> None:
    say = printer(console)
    say(comparison.joined)
    for note in comparison.notes:
        say(f"note: {note}")
    table = Table("head", "metric", "rows", *comparison.runs)
    for head in comparison.heads:
        marks = ["", *(_mark(against.is_better) for against in head.against)]
        values = (
            [f"{number(value)}{mark}" for value, mark in zip(head.values, marks, strict=True)] if head.values else []
        )
        table.add_row(head.head, head.metric, f"{head.rows:,}", *values)
    console.print(table)
    for head in comparison.heads:
        for sentence in [*(against.sentence for against in head.against), *(f"note: {note}" for note in head.notes)]:
            say(f"{head.head}: {sentence}")


def _mark(is_better: bool | None) -> str:
    return {True: " better", False: " worse", None: " same?"}[is_better]


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
