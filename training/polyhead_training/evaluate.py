"""``polyhead-evaluate``: a checkpoint's answers to labelled texts, by the serving engine, and how good they are."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from polyhead.errors import PolyheadError
from polyhead.files import replaced_folder
from polyhead.predictor import Predictor
from polyhead.schema import Schema
from polyhead_training.config import DataConfig, HeadConfig, TrainingConfig, read_config
from polyhead_training.errors import ConfigError
from polyhead_training.evaluation.evaluation import Evaluation, evaluate
from polyhead_training.evaluation.metrics import HEADLINE
from polyhead_training.evaluation.recorded import recorded_config, recorded_training

EXAMPLE = """\
polyhead-evaluate runs/reviews reviews-2024.csv --slice country --slice stars
polyhead-evaluate runs/reviews 'more/*.jsonl' --config my.toml --output reports/more
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="Examples:\n\n\b\n" + EXAMPLE)
def evaluate_files(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder made by polyhead-train.")],
    data: Annotated[
        list[str], typer.Argument(help="Labelled texts: .csv, .jsonl, .parquet or .arrow; paths or globs.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report; <checkpoint name>-evaluation here if not given. An older report is replaced.",
            envvar="POLYHEAD_EVALUATION_OUTPUT",
        ),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            help="A column for whose values the scores are also given; may be repeated.",
            envvar="POLYHEAD_SLICE",
            metavar="COLUMN",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of training that names text and label columns; that of the checkpoint if not given.",
            envvar="POLYHEAD_CONFIG",
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Takes the place of the config's.", envvar="POLYHEAD_TEXT_COLUMN")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.", envvar="POLYHEAD_DEVICE")] = "cpu",
) -> None:
    """Answer labelled texts as the server would, and report how good the answers are.

    Writes index.html (one page, for a browser), metrics.json, predictions.parquet and README.md (a model card).
    """
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    try:
        name = checkpoint.resolve().name
        target = output or Path(f"{name}-evaluation")
        from polyhead_training.evaluation.report import check_report_folder, write_report

        check_report_folder(target)
        if device not in ("cpu", "cuda"):
            raise ConfigError(f"--device {device!r}: allowed are cpu and cuda")
        predictor = Predictor.load(checkpoint, device)
        columns, heads = _settings(checkpoint, config, data, text_column, predictor.schema)
        evaluation = _evaluate_files(predictor, data, columns, heads, list(dict.fromkeys(slices or ())), console, say)
        with replaced_folder(target) as fresh:
            write_report(
                fresh,
                evaluation,
                name=name,
                source=", ".join(data),
                **recorded_training(checkpoint),
            )
    except PolyheadError as error:
        print(f"polyhead-evaluate: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        print(f"polyhead-evaluate: {target}: cannot be written ({error})", file=sys.stderr)
        raise typer.Exit(2) from None
    _print_tables(evaluation, console)
    say(f"report: {target / 'index.html'}")


def _evaluate_files(
    predictor: Predictor,
    data: list[str],
    columns: DataConfig,
    heads: list[HeadConfig],
    slices: list[str],
    console: Console,
    say: Callable[[str], None],
) -> Evaluation:
    # Imported here, since they take seconds for which a typo need not wait.
    import datasets

    from polyhead_training.data.corpus import read_split

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="polyhead-evaluation-") as scratch:
        split = read_split(data, columns, heads, predictor.schema, Path(scratch), slices)
        progress = Progress(
            TextColumn("answering"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} texts/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        with progress:
            task = progress.add_task("answering", total=len(split), rate="")

            def advance(texts: int) -> None:
                progress.advance(task, texts)
                progress.update(task, rate=f"{progress.tasks[0].speed or 0:.0f}")

            return evaluate(predictor, split, slices, say, advance)


def _settings(
    checkpoint: Path, config: Path | None, data: list[str], text_column: str | None, schema: Schema
) -> tuple[DataConfig, list[HeadConfig]]:
    """Where texts and labels stand: as the config says, else as training had it, else ``text`` and the heads' names."""
    recorded = checkpoint / "report" / "training.json"
    training: TrainingConfig | None = None
    if config is not None:
        training = read_config(config)
    elif recorded.is_file():
        training = recorded_config(recorded)
    columns = training.data if training is not None else DataConfig(train=data)
    if text_column is not None:
        columns = columns.model_copy(update={"text_column": text_column, "text_template": None})
    by_name = {head.name: head for head in training.heads} if training is not None else {}
    for head in schema:
        if head.name in by_name and by_name[head.name].kind != head.kind:
            raise ConfigError(
                f"heads: {head.name!r} is {by_name[head.name].kind} in the config, {head.kind} in the checkpoint"
            )
    return columns, [by_name.get(head.name) or HeadConfig(name=head.name, kind=head.kind) for head in schema]


def _print_tables(evaluation: Evaluation, console: Console) -> None:
    table = Table("head", "scores", title="Reached")
    for head, scores in evaluation.metrics.items():
        table.add_row(head, "  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    console.print(table)
    for column, values in evaluation.slices.items():
        sliced = Table(column, "rows", *(f"{head.name} {HEADLINE[head.kind]}" for head in evaluation.schema))
        for value, result in values.items():
            found = [result["heads"][head.name].get(HEADLINE[head.kind]) for head in evaluation.schema]
            sliced.add_row(value, str(result["rows"]), *("" if score is None else f"{score:.3f}" for score in found))
        console.print(sliced)


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    app()


if __name__ == "__main__":
    main()
