"""Training and evaluation from Python: `train` gives a `Run`, `evaluate` an `Evaluation`.

Both print nothing unless asked, and raise errors of one line. A notebook shows what they return as tables and plots.
Slow modules are imported inside the functions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyhead.errors import PolyheadError, one_line
from polyhead_rows.progress import hidden_progress
from polyhead_training.config_keys import nearest
from polyhead_training.errors import ConfigError, Interrupted, TrainingError

if TYPE_CHECKING:
    from polyhead_training.config import TrainingConfig
    from polyhead_training.evaluation.evaluation import Evaluation


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        config: with all defaults.
        checkpoint: its folder; ``checkpoint / "report" / "index.html"`` is the whole report.
        metrics: the content of ``metrics.json``.
        history: the Trainer's log: losses and scores by ``epoch`` and ``step``.
        evaluation: of the test rows or, without them, the validation rows.
        engine_distance: the serving engine's largest distance from transformers.
    """

    config: TrainingConfig
    checkpoint: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    evaluation: Evaluation
    engine_distance: float

    def __repr__(self) -> str:
        return f"Run(checkpoint={str(self.checkpoint)!r}, evaluation={self.evaluation!r})"

    def _repr_html_(self) -> str:
        from polyhead_training.evaluation.notebook import curves, run_table

        return (
            run_table(self.metrics, self.checkpoint)
            + curves(self.history, self.evaluation.schema)
            + self.evaluation._repr_html_()
        )


def train(
    config: TrainingConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    resume: bool = False,
    restart: bool = False,
    show_progress: bool = False,
) -> Run:
    """Trains, and writes the checkpoint to the config's ``output``, as ``polyhead-train`` does.

    Ctrl-C finishes the current step, saves and raises Interrupted. Signals are left alone outside of the main thread.

    Args:
        config: the keys of a TOML file as a dict, the path of a TOML file, or a validated config. Relative paths in it
            are relative to the current folder.
        resume: continues the unfinished run of this output.
        restart: deletes the unfinished run of this output.
        show_progress: prints what the command prints.

    Raises:
        ConfigError, DataError, SchemaError, CheckpointError: config, rows and model do not fit together.
        Interrupted: `resume` continues the run.
        TrainingError: a file cannot be read or written.
    """
    if resume and restart:
        raise ConfigError("resume and restart contradict each other")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("train() runs in one process; with torchrun use polyhead_training.train_command")
    with _errors_of_ours():
        settings = to_config(config)
        with nullcontext() if show_progress else hidden_progress():
            check_inputs(settings)
        with _quiet(show_progress) as say:
            from polyhead_training.fitting.fit import fit

            try:
                result = fit(settings, say, resume=resume, restart=restart)
            except Interrupted as error:
                raise Interrupted(f"{error}; to continue: train(config, resume=True)") from None
    assert result is not None  # only processes of torchrun other than the first have no result
    return Run(settings, settings.output, result.metrics, result.history, result.evaluation, result.engine_distance)


def evaluate(
    checkpoint: Run | str | os.PathLike[str],
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] | None = None,
    slices: Sequence[str] = (),
    config: TrainingConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    device: str = "cpu",
    without: Sequence[str] = (),
    slice_values: int = 20,
    slice_rows: int = 10,
    answers: Sequence[str] = (),
    answers_key: str | None = None,
    show_progress: bool = False,
    **options: Any,
) -> Evaluation:
    """Answers labelled texts as the server would, and measures the answers, as ``polyhead-evaluate`` does.

    Args:
        checkpoint: a finished run, or a checkpoint's folder.
        data: files of labelled texts: paths, globs or folders.
        output: the folder of a report, which replaces an older one; without it no report is written.
        slices: columns for whose values the scores are also given.
        config: names text and label columns; without it the checkpoint's record does.
        device: ``cpu`` or ``cuda``.
        without: heads that are left out, because the data have no labels for them.
        slice_values: how many values of a column are shown.
        slice_rows: the least rows of a value that is shown.
        answers: files of a server's answer log, whose answers are measured instead of new ones.
        answers_key: the server's POLYHEAD_ANSWER_LOG_KEY, if the log has hashes of the texts.
        show_progress: prints what the command prints.
        options: ``text_column``, ``bad_rows``, ``format``, ``delimiter``, ``encoding``, ``header`` and ``columns``;
            they replace those of the config.

    Raises:
        ConfigError, DataError, CheckpointError: the checkpoint, the config or the rows do not fit together.
        TrainingError: a file cannot be read or written.
    """
    with _errors_of_ours(), _quiet(show_progress) as say:
        from polyhead_training.evaluate_command import READ_OPTIONS, evaluate_checkpoint

        if unknown := sorted(options.keys() - set(READ_OPTIONS)):
            meant = f" (did you mean {found!r}?)" if (found := nearest(unknown[0], READ_OPTIONS)) else ""
            raise ConfigError(f"unknown option {unknown[0]!r}{meant}; allowed are {', '.join(READ_OPTIONS)}")
        files = [data] if isinstance(data, str | os.PathLike) else list(data)
        if not files:
            raise ConfigError("data: must name at least one file")
        return evaluate_checkpoint(
            checkpoint.checkpoint if isinstance(checkpoint, Run) else Path(checkpoint),
            [os.fspath(file) for file in files],
            None if output is None else Path(output),
            list(dict.fromkeys([slices] if isinstance(slices, str) else slices)),
            None if config is None else to_config(config),
            {name: tuple(value) if name == "columns" else value for name, value in options.items()},
            device,
            say,
            list(dict.fromkeys([without] if isinstance(without, str) else without)),
            slice_values,
            slice_rows,
            [answers] if isinstance(answers, str) else list(answers),
            answers_key,
        )


def to_config(config: TrainingConfig | Mapping[str, Any] | str | os.PathLike[str]) -> TrainingConfig:
    """Validates a config.

    Raises:
        ConfigError: names the field, the value and what is allowed.
    """
    from polyhead_training.config import TrainingConfig, read_config, validated

    if isinstance(config, str | os.PathLike):
        return read_config(Path(config))
    if isinstance(config, Mapping):
        return validated(_plain(config, "config"), TrainingConfig, "config")
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"config must be a dict, a path or a TrainingConfig, got {type(config).__name__}")
    return config


def check_inputs(config: TrainingConfig) -> None:
    """Finds mistakes in the first rows and in the name of the pretrained model, before slow modules are imported.

    Raises:
        ConfigError, DataError: as the training would.
    """
    from polyhead_training.data.first_rows import check_training_files
    from polyhead_training.model.hub import check_pretrained

    check_training_files(config)
    if config.model.pretrained is not None:
        check_pretrained(config.model.pretrained)


def _plain(value: Any, place: str) -> Any:
    """The value as TOML has it: paths are text, arrays are lists.

    Raises:
        ConfigError: TOML has nothing like it, for example a data frame.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{place}.{number}") for number, inner in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy, columns of pandas
        return value.tolist()
    raise ConfigError(f"{place}: must be a text, a number, a list or a dict, got {type(value).__name__}")


@contextmanager
def _errors_of_ours() -> Iterator[None]:
    """Turns what the system refuses, such as a full disk, into a TrainingError of one line."""
    try:
        yield
    except PolyheadError:
        raise
    except OSError as error:
        raise TrainingError(one_line(error)) from error


@contextmanager
def _quiet(show_progress: bool) -> Iterator[Callable[[str], None]]:
    """Gives the function that prints lines. Progress is hidden in this block unless it is wanted."""
    with quiet_libraries(), nullcontext() if show_progress else hidden_progress():
        yield print if show_progress else lambda _: None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """datasets and transformers print no bars and no notes in this block."""
    with warnings.catch_warnings():
        # Of tqdm, in a notebook without ipywidgets; no bar of tqdm is shown here.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import datasets
        import transformers

    logs = transformers.utils.logging
    verbosity, has_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    hides_bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logs.disable_progress_bar()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if has_bars:
            logs.enable_progress_bar()
        if not hides_bars:
            datasets.enable_progress_bars()
