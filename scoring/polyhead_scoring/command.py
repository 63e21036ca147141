"""``polyhead-score``: the command line of bulk scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console

from polyhead.errors import PolyheadError, describe, one_line
from polyhead.files import why_full
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead.precision import requested_precision
from polyhead.terminal import printable
from polyhead_client import PolyheadClientError
from polyhead_rows.errors import TableError
from polyhead_rows.table import FormatName
from polyhead_rows.table_file import ReadOptions
from polyhead_scoring import ScoringError
from polyhead_scoring.job import Request
from polyhead_scoring.run import run
from polyhead_scoring.server_answers import ServerOptions

ROW_ERRORS = 1  # the run is complete, some rows have no answer
FAILED = 2

EPILOG = """
Examples, with the engine on this machine, with a server, and on Ray:

* `polyhead-score reviews.csv --text-column review --output scored.csv --checkpoint runs/reviews`

* `polyhead-score 'in/*.jsonl.gz' --output scored.parquet --server a:8000,b:8000`

* `polyhead-score s3://bucket/in --output s3://bucket/out --checkpoint /mnt/model --address auto --gpus-per-actor 1`
"""

INPUT, OUTPUT = "Input", "Output"
ENGINE, RAY, SERVER = "The engine answers (--checkpoint)", "On Ray (--address)", "A server answers (--server)"
NEEDED = {ENGINE: "checkpoint", RAY: "address", SERVER: "server"}  # by the options of a panel

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def option(panel: str, about: str, *names: str, **more: Any) -> Any:
    """An option with its help."""
    return typer.Option(*names, help=about, rich_help_panel=panel, **more)


@app.command(epilog=EPILOG, context_settings={"auto_envvar_prefix": "POLYHEAD_SCORE"})
def score(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Files, globs, folders or URIs (s3://bucket/in); - is standard input."),
    ],
    output: Annotated[str, option(OUTPUT, "A file (.csv, .jsonl, .parquet, …), or a folder or URI of Parquet parts.")],
    checkpoint: Annotated[
        Path | None, option(ENGINE, "The engine answers with this checkpoint folder; with Ray, it is on every node.")
    ] = None,
    server: Annotated[
        str | None, option(SERVER, "A running server answers; replicas are separated by commas.", metavar="HOST:PORT,…")
    ] = None,
    text_column: Annotated[
        str | None,
        option(INPUT, "The column or field that holds the text. By default the columns of the model's fields if it has "
               "a text template, else text."),
    ] = None,
    format: Annotated[
        FormatName | None, option(INPUT, "Format of the input files; their names say it by default.", "--format")
    ] = None,
    delimiter: Annotated[str | None, option(INPUT, "Separates the cells of CSV files; a comma by default.")] = None,
    encoding: Annotated[str | None, option(INPUT, "Encoding of text files; UTF-8 or UTF-16 by default.")] = None,
    no_header: Annotated[bool, option(INPUT, "CSV files have no header; name --columns.", "--no-header")] = False,
    columns: Annotated[
        str | None, option(INPUT, "The columns of files without a header.", metavar="NAME,NAME,…")
    ] = None,
    keep: Annotated[
        list[str] | None,
        option(OUTPUT, "A column of the input that the output keeps; may be repeated. All by default.",
               metavar="COLUMN"),
    ] = None,
    prefix: Annotated[str, option(OUTPUT, "Stands before the names of the answers' columns.")] = "",
    top_k: Annotated[int | None, option(OUTPUT, "How many labels a head names at most.", min=1)] = None,
    threshold: Annotated[
        float | None, option(OUTPUT, "Replaces the thresholds of all multi-label heads.", min=0, max=1)
    ] = None,
    reject_below: Annotated[
        float | None,
        option(OUTPUT, "Replaces the reject_below of all single-label heads: an answer with a lower score has no "
               "label. 0 rejects nothing.", min=0, max=1),
    ] = None,
    private: Annotated[bool, option(SERVER, "Keep the texts out of the server's answer log.", "--private")] = False,
    partition_tokens: Annotated[
        int | None,
        option(OUTPUT, "A partition has about this many tokens. 50,000 by default, 500,000 if the output is a folder, "
               "where each partition is a file.", min=1),
    ] = None,
    restart: Annotated[
        bool,
        option(OUTPUT, "Throw away what is scored, and replace the output.", "--restart", allow_from_autoenv=False),
    ] = False,
    quiet: Annotated[bool, option(OUTPUT, "Show no progress.", "--quiet")] = False,
    device: Annotated[Literal["cpu", "cuda"], option(ENGINE, "Where the engine computes.")] = "cpu",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "int8"] | None,
        option(ENGINE, "auto: the fastest that the hardware has and the checkpoint allows. POLYHEAD_PRECISION or auto "
               "by default."),
    ] = None,
    address: Annotated[
        str | None,
        option(RAY, "local: a Ray on this machine. auto: the cluster that this machine belongs to. host:port, or "
               "ray://host:port from outside."),
    ] = None,
    actors: Annotated[int | None, option(RAY, "Number of actors; by default as many as have room.", min=1)] = None,
    cpus_per_actor: Annotated[
        float | None,
        option(RAY, "CPUs per actor, and its threads. 1 by default; for an actor with a GPU its share of the node's "
               "CPUs, at most 8 per GPU, because they tokenize for it.", min=0.1),
    ] = None,
    gpus_per_actor: Annotated[float, option(RAY, "GPUs per actor; if not 0, actors compute on CUDA.", min=0)] = 0,
    model: Annotated[str, option(SERVER, "The model's name.")] = "gpt2_classifier",
    model_version: Annotated[str, option(SERVER, "The model's version; the newest by default.")] = "",
    protocol: Annotated[Literal["http", "grpc"], option(SERVER, "Triton's gRPC port is 8001.")] = "http",
    timeout_s: Annotated[float, option(SERVER, "Seconds that a request may take.", min=0.001)] = 30.0,
    wait_s: Annotated[float, option(SERVER, "Seconds to wait for a server that does not answer.", min=0)] = 600.0,
    batch_size: Annotated[int, option(SERVER, "Texts per request.", min=1)] = 64,
    workers: Annotated[int, option(SERVER, "Requests at a time.", min=1)] = 4,
    api_key: Annotated[
        str | None,
        option(SERVER, "Sent as 'Authorization: Bearer KEY'. The environment variable does not show in `ps`.",
               metavar="KEY", show_default=False),
    ] = None,
    header: Annotated[
        list[str] | None, option(SERVER, "Sent with each request; may be repeated.", metavar="NAME:VALUE")
    ] = None,
    ca_file: Annotated[Path | None, option(SERVER, "PEM file of the authorities to trust, for https://.")] = None,
    client_cert: Annotated[Path | None, option(SERVER, "PEM file of this client's certificates.")] = None,
    client_key: Annotated[Path | None, option(SERVER, "PEM file of their key.")] = None,
    proxy: Annotated[str | None, option(SERVER, "An HTTP proxy.", metavar="http://HOST:PORT")] = None,
) -> None:  # fmt: skip
    """Score files of texts with a running server, with the engine on this machine, or on Ray.

    The same command continues after a kill, and does nothing if everything is done. Exit code 0: each row has its
    answer. 1: all rows are in the output, and some have an error. 2: the run could not start or end. 130: interrupted.
    """
    _check_options(context, checkpoint, server)
    console = Console(stderr=True)
    try:
        request = Request(
            data=tuple(data), output=output, read=_read_options(format, delimiter, encoding, no_header, columns),
            text_column=text_column, keep=tuple(dict.fromkeys(keep or ())) or None, prefix=prefix, top_k=top_k,
            threshold=threshold, reject_below=reject_below, private=private, partition_tokens=partition_tokens,
            restart=restart, progress=not quiet,
        )  # fmt: skip
        way: dict[str, Any]
        if server is not None:
            way = {"server": ServerOptions(
                servers=tuple(server.split(",")), model=model, version=model_version, protocol=protocol,
                timeout_s=timeout_s, wait_s=wait_s, batch_size=batch_size, workers=workers, api_key=api_key,
                headers=_headers(header or []), proxy=proxy, ca_file=ca_file, client_cert=client_cert,
                client_key=client_key,
            )}  # fmt: skip
        else:
            way = {
                "checkpoint": checkpoint, "device": "cuda" if gpus_per_actor else device,
                "precision": requested_precision(precision), "address": address, "actors": actors,
                "cpus_per_actor": cpus_per_actor, "gpus_per_actor": gpus_per_actor,
            }  # fmt: skip
        with interruptible():
            result = run(request.model_copy(update=way), console)
        manifest = result.manifest
        rate = f" ({result.rows / result.seconds:,.0f} rows/s)" if result.rows and result.seconds else ""
        rejected = "".join(f"; {printable(name)}: {count:,} rejected" for name, count in manifest["rejected"].items())
        typer.echo(f"{output}: {manifest['rows']:,} rows{rate}, {manifest['errors']:,} of them with an error{rejected}")
    except KeyboardInterrupt:
        typer.echo("polyhead-score: interrupted; the same command continues from here", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        message = one_line(error)
        if (reason := why_full(error)) is not None:
            message = f"{output}: {reason}; what is scored is kept: make room, and the same command continues"
        elif not isinstance(error, PolyheadError | PolyheadClientError | TableError | OSError):
            raise
        typer.echo(f"polyhead-score: {printable(message)}", err=True)
        raise typer.Exit(FAILED) from None
    if manifest["errors"]:
        raise typer.Exit(ROW_ERRORS)


def _check_options(context: typer.Context, checkpoint: Path | None, server: str | None) -> None:
    if (checkpoint is None) == (server is None):
        given = "both are given" if checkpoint is not None else "neither is given"
        raise typer.BadParameter(f"name either --checkpoint DIR or --server HOST:PORT; {given}")
    for parameter in context.command.params:
        needed = "checkpoint" if parameter.name == "address" else NEEDED.get(getattr(parameter, "rich_help_panel", ""))
        if needed is None or context.params[needed] is not None:
            continue
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} needs --{needed}")


def _read_options(
    format: FormatName | None, delimiter: str | None, encoding: str | None, no_header: bool, columns: str | None
) -> ReadOptions:
    try:
        return ReadOptions(
            format=format, delimiter=delimiter, encoding=encoding,
            header=not no_header, columns=None if columns is None else tuple(columns.split(",")),
        )  # fmt: skip
    except ValidationError as error:
        raise ScoringError(describe(error)) from None


def _headers(headers: list[str]) -> dict[str, str]:
    pairs = [header.partition(":") for header in headers]
    if bad := [name for name, colon, _ in pairs if not colon]:
        raise ScoringError(f"--header must be NAME:VALUE, got {bad[0]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
