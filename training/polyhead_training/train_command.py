"""``polyhead-train``: the command line of training."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from polyhead.errors import PolyheadError, one_line
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead_training.command_line import (
    WRONG_INPUT,
    command_app,
    example_option,
    interrupt_signals,
    printer,
    reference_option,
)
from polyhead_training.config import EXAMPLE, TrainingConfig, read_config
from polyhead_training.errors import Interrupted
from polyhead_training.run import check_inputs, quiet_libraries

if TYPE_CHECKING:
    from polyhead_training.fitting.fit import TrainingResult

app = command_app("polyhead-train")


@app.command(epilog="A config to start with:\n\n\b\n" + EXAMPLE.replace("\n\n", "\n\b\n"))
def train(
    config: Annotated[
        Path, typer.Argument(help="TOML file that names data, heads, model and output.", metavar="CONFIG.toml")
    ],
    output: Annotated[Path | None, typer.Option(help="The checkpoint folder, instead of the config's output.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the unfinished run of this output.")] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Delete the unfinished run of this output and start again.", allow_from_autoenv=False
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Describe the data, the model and the cost, and exit; writes nothing.")
    ] = False,
    example: Annotated[bool, example_option(EXAMPLE, "a config to start with")] = False,
    reference: Annotated[bool, reference_option(TrainingConfig)] = False,
) -> None:
    """Train a GPT-2 classifier with many heads on texts and labels, and write a self-describing checkpoint.

    Ctrl-C and SIGTERM finish the current step and save; --resume continues from there. On several GPUs:
    torchrun --nproc-per-node gpu -m polyhead_training.train_command CONFIG.toml
    """
    is_first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    console = Console(quiet=not is_first)
    if resume and restart:
        raise typer.BadParameter("--resume and --restart contradict each other")
    try:
        with interruptible(interrupt_signals()):
            settings = read_config(config)
            if output is not None:
                settings = settings.model_copy(update={"output": output})
            result = _run(settings, console, resume=resume, restart=restart, dry_run=dry_run)
    except (Interrupted, KeyboardInterrupt) as error:
        if is_first:
            print(f"polyhead-train: {_how_to_resume(error, config, output)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (PolyheadError, OSError) as error:  # a full disk is a StorageError
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one message per machine, because each may have its own error
            print(f"polyhead-train: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None
    if result is not None:
        _print_summary(result, settings, console)


def _run(
    settings: TrainingConfig, console: Console, *, resume: bool, restart: bool, dry_run: bool
) -> TrainingResult | None:
    """Imports slow modules only here, so that a mistake in the config or in a first row is reported at once."""
    check_inputs(settings)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with quiet_libraries():
        if dry_run:
            from polyhead_training.fitting.preparation import dry_run as describe

            describe(settings, printer(console))
            return None
        from polyhead_training.fitting.fit import fit

        return fit(settings, printer(console), resume=resume, restart=restart)


def _how_to_resume(error: BaseException, config: Path, output: Path | None) -> str:
    if not isinstance(error, Interrupted):
        return "interrupted; if an unfinished run is saved, --resume continues it"
    option = [] if output is None else ["--output", str(output)]
    return f"{error}; to continue: {shlex.join(['polyhead-train', str(config), *option, '--resume'])}"


def _print_summary(result: TrainingResult, settings: TrainingConfig, console: Console) -> None:
    from polyhead_training.evaluation.score_table import score_table  # scikit-learn takes a second to import

    names = [name for name in ("similar", "validation", "test") if name in result.metrics]
    splits: dict[str, Any] = {name: result.metrics[name] for name in names}
    console.print(score_table(result.schema, splits, result.metrics.get("baselines", {})))
    say = printer(console)
    for sentence in result.metrics["measured_on"].values():
        say(sentence)
    for note in result.metrics["notes"]:
        say(f"note: {note}")
    say(f"checkpoint: {settings.output} (engine within {result.engine_distance:.1e} of transformers)")
    say(f"report: {settings.output / 'report' / 'index.html'}")
    say(f"next: polyhead-export {settings.output} --repository model_repository")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
