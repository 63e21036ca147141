"""``polyhead-evaluate``: answers labelled texts with the serving engine and measures how good the answers are."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyhead.errors import describe
from polyhead.files import replaced_folder
from polyhead.interface import Interface
from polyhead.schema import HeadKind, Schema
from polyhead_rows.place import split_name
from polyhead_rows.table_file import ReadOptions
from polyhead_training.command_line import command_app, one_line_errors, printer
from polyhead_training.config import DataConfig, HeadConfig, ReportConfig, TrainingConfig, read_config
from polyhead_training.data.first_rows import check_evaluation_files
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.recorded import (
    measured_on,
    recorded_config,
    recorded_constants,
    recorded_similar,
    recorded_training,
)

if TYPE_CHECKING:
    from polyhead_training.data.corpus import Split
    from polyhead_training.evaluation.evaluation import Evaluation

EXAMPLE = """\
polyhead-evaluate runs/reviews reviews-2024.csv --slice country --slice stars
polyhead-evaluate runs/reviews 'more/*.jsonl' --config my.toml --output reports/more
polyhead-evaluate runs/reviews stars-only.csv --without topic --without tags
polyhead-evaluate runs/reviews labelled.csv --answers /var/log/polyhead
"""
NO_LINEAR = (
    "A linear model is not compared here, because it is fitted on the training rows; the report of the training "
    "compares it."
)
REPLACES = "Replaces the config's."
READ_OPTIONS = ("text_column", "bad_rows", *ReadOptions.model_fields)

app = command_app("polyhead-evaluate")


@app.command(epilog="Examples:\n\n\b\n" + EXAMPLE)
def evaluate_files(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder made by polyhead-train.")],
    data: Annotated[
        list[str],
        typer.Argument(help="Labelled texts: CSV, TSV, JSON lines, JSON, Parquet or Arrow; paths, globs or folders."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report. Without it, <checkpoint name>-evaluation in this folder. "
            "An older report is replaced."
        ),
    ] = None,
    slice: Annotated[
        list[str] | None,
        typer.Option(help="Also give the scores for each value of this column. May be repeated.", metavar="COLUMN"),
    ] = None,
    slice_values: Annotated[int, typer.Option(help="How many values of a column --slice shows.", min=1)] = 20,
    slice_rows: Annotated[int, typer.Option(help="The least rows of a value that --slice shows.", min=1)] = 10,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave this head out, because the files have no labels for it. May be repeated.", metavar="HEAD"
        ),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure what a server answered, by its answer log, instead of answering again: files, globs or "
            "folders. Found by the text. May be repeated.",
            metavar="LOG",
        ),
    ] = None,
    answers_key: Annotated[
        str | None,
        typer.Option(
            help="The server's POLYHEAD_ANSWER_LOG_KEY, for a log of hashes. The variable hides it from `ps`."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training config that names text and label columns. Without it, the checkpoint's record."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help=f"Column of the text. {REPLACES}")] = None,
    format: Annotated[
        str | None, typer.Option(help=f"csv, tsv, jsonl, json, parquet or arrow. {REPLACES}", metavar="FORMAT")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help=f"Between the columns of a CSV. {REPLACES}")] = None,
    encoding: Annotated[str | None, typer.Option(help=f"Of text files, as cp1252. {REPLACES}")] = None,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help=f"Whether a CSV's first line names the columns. {REPLACES}"),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help=f"Names of the columns, with commas, for --no-header. {REPLACES}")
    ] = None,
    bad_rows: Annotated[
        str | None,
        typer.Option(help=f"stop at rows that cannot be read, or skip and count them. {REPLACES}", metavar="stop|skip"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Answer labelled texts as the server would, and report how good the answers are.

    Writes index.html (one page, for a browser), metrics.json, predictions.parquet, suspects.csv (labels that are
    probably wrong), README.md (a model card) and distribution.json (what the model says, see docs/watch.md). A label
    that training never saw counts as wrong, and is listed.
    """
    console = Console()
    target = output or Path(f"{checkpoint.resolve().name}-evaluation")
    given = {
        "text_column": text_column,
        "format": format,
        "delimiter": delimiter,
        "encoding": encoding,
        "header": header,
        "columns": None if columns is None else tuple(columns.split(",")),
        "bad_rows": bad_rows,
    }
    replaced = {name: value for name, value in given.items() if value is not None}
    with one_line_errors("polyhead-evaluate"):
        evaluation = evaluate_checkpoint(
            checkpoint,
            data,
            target,
            list(dict.fromkeys(slice or ())),
            None if config is None else read_config(config),
            replaced,
            device,
            printer(console),
            list(dict.fromkeys(without or ())),
            slice_values,
            slice_rows,
            answers or [],
            answers_key,
        )
    _print_tables(evaluation, console)
    printer(console)(f"report: {target / 'index.html'}")


def evaluate_checkpoint(
    checkpoint: Path,
    data: list[str],
    target: Path | None,
    slices: list[str],
    config: TrainingConfig | None,
    replaced: dict[str, Any],
    device: str,
    say: Callable[[str], None],
    without: list[str],
    slice_values: int,
    slice_rows: int,
    answers: list[str] | None = None,
    answers_key: str | None = None,
) -> Evaluation:
    """Evaluates the texts and writes the report to `target`, in one step; None writes none."""
    if answers_key is not None and not answers:
        raise ConfigError("--answers-key: is for --answers, the files of an answer log")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device!r}: allowed are cpu and cuda")
    interface = Interface.of_checkpoint(checkpoint)
    _check_without(without, interface.schema)
    columns, heads, report = _settings(checkpoint, config, data, replaced, interface)
    check_evaluation_files(data, columns, heads, interface.schema, slices, without)
    # Imported here because these imports take seconds; a mistake must be reported before them.
    import datasets

    from polyhead.predictor import Predictor
    from polyhead_training.data.answer_log import LoggedScores
    from polyhead_training.data.corpus import read_split
    from polyhead_training.evaluation.answer_distribution import answer_distribution
    from polyhead_training.evaluation.baselines import Baselines
    from polyhead_training.evaluation.evaluation import evaluate
    from polyhead_training.evaluation.notes import notes_of
    from polyhead_training.evaluation.reasons import with_reasons
    from polyhead_training.evaluation.report import check_report_folder, write_report
    from polyhead_training.evaluation.slices import SliceOptions

    datasets.disable_progress_bars()
    if target is not None:
        check_report_folder(target)
    predictor = Predictor.load(checkpoint, device)
    distance = predictor.check_golden()
    say(f"proved with golden.jsonl: scores in {predictor.precision} are within {distance:.1e} of the golden ones")
    if predictor.template is not None and columns.text_template is None:
        say(f"note: column {columns.text_column!r} is read as finished text; the model's text_template is not used")
    with tempfile.TemporaryDirectory(prefix="polyhead-evaluation-") as scratch:
        split = read_split(
            data, columns, heads, predictor.schema, Path(scratch), slices, show_progress=True, without=without
        )
        for note in split.notes:
            say(f"note: {note}")
        _check_labelled(split, heads, without, predictor.schema)
        logged = LoggedScores(answers, checkpoint, predictor.schema, split.texts, answers_key) if answers else None
        for note in logged.notes if logged is not None else ():
            say(f"note: {note}")
        evaluation = evaluate(
            predictor, split, slices, say, True,
            slice_options=SliceOptions(slice_values, slice_rows, columns.group_column or ""),
            with_suspects=report.suspects, logged=logged,
        )  # fmt: skip
    baselines = Baselines(recorded_constants(checkpoint) if report.baselines else {}).measure(
        evaluation.texts, evaluation.labels, evaluation.schema, evaluation.unseen
    )
    evaluation = replace(
        evaluation,
        left_out=without,
        measured_on=measured_on(checkpoint, data, set(evaluation.files), len(evaluation.texts))
        + ("" if logged is None else f" {logged.described}"),
        baselines={head: found for head, found in baselines.items() if head not in without},
        baselines_note=NO_LINEAR if report.baselines else "",
    )
    if (similar := recorded_similar(checkpoint)) is not None:
        evaluation = evaluation.beside(similar, "these rows")
    for line in notes_of(evaluation):
        say(f"note: {line}")
    if target is None:
        return evaluation
    if report.reasons:
        evaluation = with_reasons(evaluation, predictor, show_progress=True)
    try:
        with replaced_folder(target) as fresh:
            name = checkpoint.resolve().name
            write_report(fresh, evaluation, name=name, source=", ".join(data), **recorded_training(checkpoint))
            answer_distribution(evaluation).write(fresh)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error})") from error
    return evaluation


def _check_without(without: list[str], schema: Schema) -> None:
    names = [head.name for head in schema]
    if unknown := [name for name in without if name not in names]:
        raise ConfigError(f"--without {unknown[0]!r}: the model has no such head, only {', '.join(names)}")
    if set(without) == set(names):
        raise ConfigError(
            "--without: leaves out all heads, so nothing is measured; polyhead-score answers texts without labels"
        )


def _check_labelled(split: Split, heads: list[HeadConfig], without: list[str], schema: Schema) -> None:
    """Makes sure that each head has a labelled row, unless it is left out.

    Raises:
        DataError: names the head, its column and the option.
    """
    columns = {head.name: head.column or ", ".join(head.columns or [head.name]) for head in heads}
    for head in schema:
        labels = split.labels[:, schema.label_columns[head.name]]
        if head.name not in without and np.isnan(labels).any(axis=1).all():
            what = "number" if head.kind == HeadKind.REGRESSION else "label"
            raise DataError(
                f"column {columns.get(head.name, head.name)!r} has no {what} for head {head.name!r} in any of "
                f"{len(split)} rows; --without {shlex.quote(head.name)} leaves this head out"
            )


def _settings(
    checkpoint: Path, config: TrainingConfig | None, data: list[str], replaced: dict[str, Any], interface: Interface
) -> tuple[DataConfig, list[HeadConfig], ReportConfig]:
    """How rows are read and what the report holds: options first, then the config, then the record, then the defaults.

    The model's own template comes before the template of a config, because serving renders with it.
    """
    recorded = checkpoint / "report" / "training.json"
    training = config
    if config is None and recorded.is_file():
        training = recorded_config(recorded)
    settings = {} if training is None else training.data.model_dump()
    settings |= dict.fromkeys(("hub", "hub_config", "validation", "test")) | {"train": data}
    _drop_unsuited(settings, data)
    if "text_column" in replaced:
        settings["text_template"] = None
    elif interface.text_template is not None and settings.get("text_column", "text") == "text":
        settings["text_template"] = interface.text_template
    try:
        columns = DataConfig.model_validate(settings | replaced)
    except ValidationError as error:
        raise ConfigError(f"options: {describe(error)}") from error
    heads = [] if training is None else training.heads
    kinds = {head.name: head.kind for head in interface.schema}
    for head in heads:
        if kinds.get(head.name, head.kind) != head.kind:
            raise ConfigError(
                f"heads: {head.name!r} is {head.kind} in the config, {kinds[head.name]} in the checkpoint"
            )
    return columns, heads, ReportConfig() if training is None else training.report


def _drop_unsuited(settings: dict[str, Any], data: list[str]) -> None:
    """Drops read options of the training files that do not suit the formats of `data`."""
    named: set[str | None] = {split_name(name)[0] for name in data} - {None, "lines"}
    if named:
        settings["format"] = None  # the names say it
    kinds = named or {settings.get("format")}
    if kinds.isdisjoint({"csv", None}):
        settings["delimiter"] = None
    if kinds.isdisjoint({"csv", "tsv", "json", "jsonl", None}):
        settings |= {"header": True, "columns": None}
    if kinds <= {"parquet", "arrow"}:
        settings["encoding"] = None


def _print_tables(evaluation: Evaluation, console: Console) -> None:
    from polyhead_training.evaluation.score_table import score_table  # scikit-learn takes a second to import
    from polyhead_training.evaluation.wording import number

    metrics = {head.name: evaluation.metrics[head.name] for head in evaluation.heads}
    console.print(score_table(evaluation.schema, {"": metrics}, {"": evaluation.baselines}))
    say = printer(console)
    say(evaluation.measured_on)
    for content in evaluation.slice_tables():
        sliced = Table(*map(escape, content["columns"]))
        for value, rows, *scores in content["rows"]:
            sliced.add_row(escape(value), number(rows), *("" if score is None else number(score) for score in scores))
        console.print(sliced)
        if content["note"]:
            say(content["note"])


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    app()


if __name__ == "__main__":
    main()
