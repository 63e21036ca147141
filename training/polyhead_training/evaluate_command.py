"""``polyhead-evaluate``: answers labelled texts with the serving engine and measures how good the answers are.

A checkpoint records how it was trained. It may come from anyone, so nothing in that record is trusted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from polyhead.checkpoint_files import read_json, read_text
from polyhead.errors import CheckpointError, describe
from polyhead.files import replaced_folder
from polyhead.interface import Interface
from polyhead_rows.place import split_name
from polyhead_rows.table_file import ReadOptions
from polyhead_training.command_line import command_app, one_line_errors, printer
from polyhead_training.config import DataConfig, HeadConfig, TrainingConfig, read_config
from polyhead_training.data.first_rows import check_evaluation_files
from polyhead_training.errors import ConfigError

if TYPE_CHECKING:
    from polyhead_training.evaluation.evaluation import Evaluation

EXAMPLE = """\
polyhead-evaluate runs/reviews reviews-2024.csv --slice country --slice stars
polyhead-evaluate runs/reviews 'more/*.jsonl' --config my.toml --output reports/more
"""
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

    Writes index.html (one page, for a browser), metrics.json, predictions.parquet and README.md (a model card).
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
) -> Evaluation:
    """Evaluates the texts and writes the report to `target`, in one step; None writes none."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device!r}: allowed are cpu and cuda")
    interface = Interface.of_checkpoint(checkpoint)
    columns, heads = _settings(checkpoint, config, data, replaced, interface)
    check_evaluation_files(data, columns, heads, interface.schema, slices)
    # Imported here because these imports take seconds; a mistake must be reported before them.
    import datasets

    from polyhead.predictor import Predictor
    from polyhead_training.data.corpus import read_split
    from polyhead_training.evaluation.evaluation import evaluate
    from polyhead_training.evaluation.report import check_report_folder, write_report

    datasets.disable_progress_bars()
    if target is not None:
        check_report_folder(target)
    predictor = Predictor.load(checkpoint, device)
    distance = predictor.check_golden()
    say(f"proved with golden.jsonl: scores in {predictor.precision} are within {distance:.1e} of the golden ones")
    if predictor.template is not None and columns.text_template is None:
        say(f"note: column {columns.text_column!r} is read as finished text; the model's text_template is not used")
    with tempfile.TemporaryDirectory(prefix="polyhead-evaluation-") as scratch:
        split = read_split(data, columns, heads, predictor.schema, Path(scratch), slices, show_progress=True)
        for note in split.notes:
            say(f"note: {note}")
        evaluation = evaluate(predictor, split, slices, say, show_progress=True)
    named = {head.name: head.column or ", ".join(head.columns or [head.name]) for head in heads}
    for name, scores in evaluation.metrics.items():
        if not scores["rows"]:
            say(f"note: head {name!r} has no scores: no row has a label in column {named.get(name, name)!r}")
    if target is None:
        return evaluation
    try:
        with replaced_folder(target) as fresh:
            name = checkpoint.resolve().name
            write_report(fresh, evaluation, name=name, source=", ".join(data), **recorded_training(checkpoint))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error})") from error
    return evaluation


def _settings(
    checkpoint: Path, config: TrainingConfig | None, data: list[str], replaced: dict[str, Any], interface: Interface
) -> tuple[DataConfig, list[HeadConfig]]:
    """How rows are read: options first, then the config, then the checkpoint's record, then the defaults.

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
    return columns, heads


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
    table = Table("head", "scores", title="Reached")
    for head, scores in evaluation.metrics.items():
        table.add_row(head, "  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    console.print(table)
    for content in evaluation.slice_tables():
        sliced = Table(*content["columns"])
        for value, rows, *scores in content["rows"]:
            sliced.add_row(value, str(rows), *("" if score is None else f"{score:.3f}" for score in scores))
        console.print(sliced)


class _Logged(BaseModel, extra="allow"):
    """An entry of ``history.json``."""

    epoch: float
    __pydantic_extra__: dict[str, float]


class _Calibrated(BaseModel):
    """A head's calibration in ``metrics.json``."""

    rows: int = 0
    temperature: FiniteFloat
    thresholds: dict[str, FiniteFloat] = {}
    before: dict[str, FiniteFloat]
    after: dict[str, FiniteFloat]


def recorded_config(path: Path) -> TrainingConfig:
    """The config of the checkpoint's training. Nothing that it names is imported or called.

    Raises:
        ConfigError: it is damaged, or names a function that evaluation would call.
    """
    try:
        training = TrainingConfig.model_validate_json(read_text(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    named = {"data.text_transforms": training.data.text_transforms, "data.filters": training.data.filters} | {
        f"heads.{head.name}.label_transforms": head.label_transforms for head in training.heads
    }
    for field, names in named.items():
        if functions := [name for name in names if ":" in name]:
            raise ConfigError(
                f"{path}: {field} names the function {functions[0]!r}; code that a checkpoint names is not run, "
                "so give your own training config with --config"
            )
    if files := [head.name for head in training.heads if isinstance(head.names, str)]:
        raise ConfigError(
            f"{path}: heads.{files[0]}.names names a file; a file that a checkpoint names is not read, so give your "
            "own training config with --config"
        )
    return training.model_copy(update={"data": training.data.model_copy(update={"augment": []})})


def recorded_training(checkpoint: Path) -> dict[str, Any]:
    """``history``, ``calibration`` and ``training`` for `write_report`; None or empty if they are malformed."""
    metrics = _read_json(checkpoint / "metrics.json")
    metrics = metrics if isinstance(metrics, dict) else {}
    training = _valid(dict[str, Any], metrics.get("training")) or {}
    return {
        "history": _valid(list[_Logged], _read_json(checkpoint / "report" / "history.json")),
        "calibration": _valid(dict[str, _Calibrated], metrics.get("calibration")),
        "training": {key: value for key, value in training.items() if isinstance(value, int | float)},
    }


def _valid(kind: Any, content: Any) -> Any:
    adapter = TypeAdapter(kind)
    try:
        return adapter.dump_python(adapter.validate_python(content), exclude_unset=True)
    except ValidationError:
        return None


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except CheckpointError:
        return None


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    app()


if __name__ == "__main__":
    main()
