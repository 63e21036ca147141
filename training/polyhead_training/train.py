"""``polyhead-train``: the command line of training."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from polyhead.errors import PolyheadError, one_line
from polyhead_training.config import EXAMPLE, TrainingConfig, read_config
from polyhead_training.errors import Interrupted
from polyhead_training.example import example_option

if TYPE_CHECKING:
    from polyhead_training.fitting.fit import TrainingResult

INTERRUPTED = 130  # as shells count: 128 + SIGINT

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="A config to start with:\n\n\b\n" + EXAMPLE.replace("\n\n", "\n\b\n"))
def train(
    config: Annotated[
        Path, typer.Argument(help="TOML file that names data, heads, model and output.", metavar="CONFIG.toml")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Takes the place of the config's output.", envvar="POLYHEAD_OUTPUT")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run of this output.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw an unfinished run away and start anew.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained on what, and stop; nothing is written.")
    ] = False,
    example: Annotated[bool, example_option(EXAMPLE, "a config to start with")] = False,
) -> None:
    """Train a many-headed GPT-2 classifier from texts and labels, and write a checkpoint that describes itself.

    Ctrl-C finishes the current step and saves; --resume goes on from there. On several GPUs:
    torchrun --nproc-per-node gpu -m polyhead_training.train CONFIG.toml
    """
    is_first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    console = Console(quiet=not is_first)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if resume and restart:
        raise typer.BadParameter("--resume and --restart contradict each other")
    try:
        settings = read_config(config)
        if output is not None:
            settings = settings.model_copy(update={"output": output})
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        _quiet_libraries()
        if dry_run:
            from polyhead_training.dry_run import dry_run as describe

            describe(settings, say)
            return
        from polyhead_training.fitting.fit import fit

        result = fit(settings, say, resume=resume, restart=restart)
    except (Interrupted, KeyboardInterrupt) as error:
        if is_first:
            print(f"polyhead-train: {_how_to_go_on(error, config, output)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (PolyheadError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # each machine of several may have its own trouble
            print(f"polyhead-train: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    if result is not None:
        _sum_up(result, settings, console)


def _how_to_go_on(error: BaseException, config: Path, output: Path | None) -> str:
    if not isinstance(error, Interrupted):
        return "interrupted; what is saved of an unfinished run can be gone on with by --resume"
    option = [] if output is None else ["--output", str(output)]
    return f"{error}; go on with: {shlex.join(['polyhead-train', str(config), *option, '--resume'])}"


def _sum_up(result: TrainingResult, settings: TrainingConfig, console: Console) -> None:
    from polyhead_training.evaluation.metrics import MAIN  # scikit-learn takes a second to import

    table = Table("split", "head", "scores", title="Reached")
    for split in ("validation", "test"):
        for name, scores in result.metrics.get(split, {}).items():
            shown = [key for key in MAIN[result.schema[name].kind] if key in scores]
            table.add_row(split, name, "  ".join(f"{key} {scores[key]:.3f}" for key in shown))
    console.print(table)
    console.print(
        f"checkpoint: {settings.output} (engine within {result.engine_distance:.1e} of transformers)", highlight=False
    )
    console.print(f"report: {settings.output / 'report' / 'index.html'}", highlight=False, soft_wrap=True)
    console.print(f"next: polyhead-export {settings.output} --repository model_repository", highlight=False)


def _quiet_libraries() -> None:
    """Their progress bars and reports; imported here, since that takes seconds for which a typo need not wait."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
