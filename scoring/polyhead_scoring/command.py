"""``polyhead-score``: the command line of bulk scoring."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polyhead.engine import PRECISIONS
from polyhead.errors import PolyheadError, one_line
from polyhead_scoring.request import Request
from polyhead_scoring.run import run

ROW_ERRORS = 1  # the run is whole, some rows have no answer
FAILED = 2
INTERRUPTED = 130  # as shells count: 128 + SIGINT

EXAMPLE = """\
polyhead-score runs/reviews 'reviews/*.parquet' --text-column review --output scored
polyhead-score /shared/runs/reviews s3://bucket/reviews --output s3://bucket/scored --address auto --gpus-per-actor 1
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="Examples:\n\n\b\n" + EXAMPLE)
def score(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, at the same path on every node.")],
    data: Annotated[
        list[str], typer.Argument(help=".parquet, .jsonl or .csv: files, globs, folders or URIs as s3://bucket/folder.")
    ],
    output: Annotated[
        str, typer.Option(help="Folder or URI of the Parquet files to be written.", envvar="POLYHEAD_SCORE_OUTPUT")
    ],
    text_column: Annotated[str, typer.Option(envvar="POLYHEAD_TEXT_COLUMN")] = "text",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of the input that the output has too; may be repeated. All, if not given.",
            envvar="POLYHEAD_KEEP",
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Stands before the heads' names in column names.", envvar="POLYHEAD_PREFIX")
    ] = "predicted_",
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Labels a head names, at most.", envvar="POLYHEAD_TOP_K")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Instead of multi-label heads' own thresholds.", envvar="POLYHEAD_THRESHOLD"),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            help="local: this machine's cores. auto: the Ray cluster that this machine belongs to. host:port, or "
            "ray://host:port from outside.",
            envvar="POLYHEAD_ADDRESS",
        ),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Predictors; as many as there is room for, if not given.", envvar="POLYHEAD_ACTORS"),
    ] = None,
    cpus_per_actor: Annotated[
        float, typer.Option(min=0.1, help="Also its threads.", envvar="POLYHEAD_CPUS_PER_ACTOR")
    ] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(min=0, help="With any, predictors run on CUDA.", envvar="POLYHEAD_GPUS_PER_ACTOR")
    ] = 0,
    partition_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="About as many tokens make one file of the output.", envvar="POLYHEAD_PARTITION_TOKENS"
        ),
    ] = 500_000,
    precision: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(PRECISIONS)}; auto: the fastest that each node has and the checkpoint allows.",
            envvar="POLYHEAD_PRECISION",
        ),
    ] = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what lies in the output.")] = False,
) -> None:
    """Score data sets with the engine on Ray, without a server.

    The same command goes on after a kill, and does nothing if all is done. Exit code 0: all rows are scored; 1: all are
    in the output, some with an error; 2: the run did not start or end; 130: it was interrupted.
    """
    if precision not in ("auto", *PRECISIONS):
        raise typer.BadParameter(f"--precision {precision!r}: must be auto or one of {', '.join(PRECISIONS)}")
    request = Request(
        checkpoint=checkpoint, data=tuple(data), output=output, text_column=text_column, keep=tuple(keep or ()) or None,
        prefix=prefix, top_k=top_k, threshold=threshold, partition_tokens=partition_tokens, actors=actors,
        cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor, precision=precision, restart=restart,
    )  # fmt: skip
    try:
        summary = run(request, address, Console())
    except KeyboardInterrupt:
        print("polyhead-score: interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (PolyheadError, OSError) as error:
        print(f"polyhead-score: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    manifest = summary.manifest
    rate = f" ({summary.rows / summary.seconds:,.0f} rows/s)" if summary.rows else ""
    console = Console()
    console.print(
        f"{output}: {manifest['rows']:,} rows{rate}, {manifest['errors']:,} of them with an error",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    if manifest["errors"]:
        raise typer.Exit(ROW_ERRORS)


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say Ctrl-C
    app()


if __name__ == "__main__":
    main()
