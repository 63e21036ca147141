"""The command line: ``polyhead-client classify | schema | ready | stats``.

Exit codes: 0 all texts were answered, 1 some text has an error, 2 bad usage or no answer from the server, 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from polyhead_client import options
from polyhead_client.bulk.answers import Question, answer_rows
from polyhead_client.bulk.job import Job, Outcome, score_file
from polyhead_client.bulk.progress import report
from polyhead_client.bulk.sources import LinesSource
from polyhead_client.client import Client
from polyhead_client.errors import PolyheadClientError, UsageError
from polyhead_client.options import flag
from polyhead_client.prediction import Prediction
from polyhead_client.readable import print_predictions, print_schema, print_statistics
from polyhead_client.stream import CONCURRENCY

INTERRUPTED = 130  # as shells have it for SIGINT

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Every option is also an environment variable: POLYHEAD_ and its name, as in POLYHEAD_TEXT_COLUMN for "
    "--text-column. `polyhead-client COMMAND --help` has examples. Exit codes: 0 all answered, 1 some texts have an "
    "error, 2 bad usage or no answer.",
)

CLASSIFY_EXAMPLES = """
Examples:

* `polyhead-client classify "a fast parser for JSON" --top-k 3`

* `cut -f2 texts.tsv | polyhead-client classify --json > answers.jsonl`

* `polyhead-client classify --input reviews.csv --text-column review --output scored.parquet --workers 8`

* `POLYHEAD_SERVER="a:8000 b:8000" polyhead-client classify --input reviews.jsonl --output scored.csv`

A file that is being scored may be stopped or killed at any time: the same command goes on where it was (the folder
OUTPUT.partial holds what is done). OUTPUT appears whole, at the end. Rows that cannot be scored are not in it but in
OUTPUT's name with .errors.jsonl, each with its number and the reason; then the exit code is 1.
"""


@app.callback()
def root() -> None:
    """Asks a Polyhead text classifier on a Triton server."""


@app.command(epilog=CLASSIFY_EXAMPLES)
def classify(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; the lines of standard input if none.", show_default=False),
    ] = None,
    top_k: options.TopK = None,
    threshold: options.Threshold = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = CONCURRENCY,
    as_json: Annotated[bool, flag("--json", "One JSON object a text, instead of a table.")] = False,
    source: options.Input = None,
    text_column: options.TextColumn = "text",
    output: options.Output = None,
    prefix: options.Prefix = "",
    restart: options.Restart = False,
    quiet: options.Quiet = False,
    server: options.Servers = ["localhost:8000"],  # noqa: B006 # typer copies it
    model: options.Model = "gpt2_classifier",
    model_version: options.ModelVersion = "",
    protocol: options.ProtocolName = options.Protocol.HTTP,
    timeout_s: options.TimeoutS = 30.0,
    api_key: options.ApiKey = None,
    header: options.Headers = None,
    ca_file: options.CaFile = None,
    client_cert: options.ClientCert = None,
    client_key: options.ClientKey = None,
    proxy: options.Proxy = None,
) -> None:
    """Classifies texts, the lines of standard input, or the rows of a file."""
    question = Question(batch_size, workers, top_k, threshold)
    with (
        _exit_codes(),
        options.connect(
            server, model, model_version, protocol, timeout_s, api_key, header, ca_file, client_cert, client_key,
            proxy, batch_size, workers,
        ) as client,
    ):  # fmt: skip
        if source is not None:
            if texts:
                raise UsageError("texts and --input were given; one at a time")
            if output is None:
                raise UsageError("--input needs --output, where the scored rows go")
            job = Job(source, output, text_column, question, prefix, restart, model_version)
            spoiled = _score_file(client, job, quiet)
        elif output is not None:
            raise UsageError("--output needs --input; answers to texts go to standard output")
        else:
            answers = _answer_texts(client, texts, question)
            spoiled = _print_json(answers) if as_json else _print_table(answers)
    if spoiled:
        raise typer.Exit(1)


@app.command()
def schema(
    as_json: options.AsJson = False,
    server: options.Servers = ["localhost:8000"],  # noqa: B006 # as above
    model: options.Model = "gpt2_classifier",
    model_version: options.ModelVersion = "",
    protocol: options.ProtocolName = options.Protocol.HTTP,
    timeout_s: options.TimeoutS = 30.0,
    api_key: options.ApiKey = None,
    header: options.Headers = None,
    ca_file: options.CaFile = None,
    client_cert: options.ClientCert = None,
    client_key: options.ClientKey = None,
    proxy: options.Proxy = None,
) -> None:
    """Shows the heads and labels of the served model."""
    with (
        _exit_codes(),
        options.connect(
            server, model, model_version, protocol, timeout_s, api_key, header, ca_file, client_cert, client_key, proxy
        ) as client,
    ):
        found = client.schema()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print_schema(found)


@app.command()
def ready(
    wait_s: Annotated[float, flag("--wait-s", "Seconds to wait until it is ready.", min=0)] = 0.0,
    canary: Annotated[
        bool, flag("--canary/--no-canary", "Have a text answered; without, take Triton's word, which may be wrong.")
    ] = True,
    server: options.Servers = ["localhost:8000"],  # noqa: B006 # as above
    model: options.Model = "gpt2_classifier",
    model_version: options.ModelVersion = "",
    protocol: options.ProtocolName = options.Protocol.HTTP,
    timeout_s: options.TimeoutS = 30.0,
    api_key: options.ApiKey = None,
    header: options.Headers = None,
    ca_file: options.CaFile = None,
    client_cert: options.ClientCert = None,
    client_key: options.ClientKey = None,
    proxy: options.Proxy = None,
) -> None:
    """Says whether a server answers: exit code 0 if one does, else 2.

    Example: `polyhead-client ready --wait-s 120 && ./nightly-scoring.sh`
    """
    with (
        _exit_codes(),
        options.connect(
            server, model, model_version, protocol, timeout_s, api_key, header, ca_file, client_cert, client_key, proxy
        ) as client,
    ):
        if wait_s and canary:
            client.wait_until_ready(wait_s)
        elif not client.is_ready(canary):
            raise UsageError(f"not ready: none of {', '.join(client.replicas)} answered for {model}")
    typer.echo("ready")


@app.command()
def stats(
    as_json: options.AsJson = False,
    server: options.Servers = ["localhost:8000"],  # noqa: B006 # as above
    model: options.Model = "gpt2_classifier",
    model_version: options.ModelVersion = "",
    protocol: options.ProtocolName = options.Protocol.HTTP,
    timeout_s: options.TimeoutS = 30.0,
    api_key: options.ApiKey = None,
    header: options.Headers = None,
    ca_file: options.CaFile = None,
    client_cert: options.ClientCert = None,
    client_key: options.ClientKey = None,
    proxy: options.Proxy = None,
) -> None:
    """Shows what each replica has counted.

    polyhead-serve tells only who sends its admin key: `--header "polyhead-admin-key:$POLYHEAD_ADMIN_KEY"`, over gRPC
    `triton-grpc-protocol-polyhead-admin-key:…`.
    """
    with (
        _exit_codes(),
        options.connect(
            server, model, model_version, protocol, timeout_s, api_key, header, ca_file, client_cert, client_key, proxy
        ) as client,
    ):
        found = client.statistics()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        print_statistics(found)


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # as in `… | head`: typer ends quietly
        raise
    except (PolyheadClientError, OSError) as error:
        typer.echo(f"polyhead-client: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("polyhead-client: stopped", err=True)
        raise typer.Exit(INTERRUPTED) from error


def _score_file(client: Client, job: Job, quiet: bool) -> int:
    console = Console(stderr=True)
    try:
        outcome = score_file(client, job, lambda meter: report(meter, console, shown=not quiet))
    except (PolyheadClientError, OSError, KeyboardInterrupt):
        if job.journal.exists():
            typer.echo(f"what is done is in {job.journal}; the same command goes on from there", err=True)
        raise
    if not quiet:
        typer.echo(_sum_up(job, outcome), err=True)
    return outcome.spoiled


def _sum_up(job: Job, outcome: Outcome) -> str:
    before = f" ({outcome.resumed:,} rows by an earlier run)" if outcome.resumed else ""
    spoiled = f"; {outcome.spoiled:,} rows could not be: {job.errors}" if outcome.spoiled else ""
    return f"{outcome.scored:,} rows scored{before}: {job.output}{spoiled}"


def _answer_texts(client: Client, texts: list[str] | None, question: Question) -> Iterator[tuple[str, Prediction]]:
    if texts:
        predictions = client.classify(texts, question.top_k, question.threshold)
        yield from zip(texts, predictions, strict=True)
        return
    if sys.stdin.isatty():
        raise UsageError("no texts: give them as arguments, or pipe one a line into standard input")
    source = LinesSource(typer.get_binary_stream("stdin"))
    empty = True
    for row, prediction in answer_rows(client, source.rows(), question):
        empty = False
        yield (row.fields or {})["text"], prediction
    if empty:
        raise UsageError("no texts: standard input is empty")


def _print_json(answers: Iterator[tuple[str, Prediction]]) -> int:
    spoiled = 0
    for text, prediction in answers:
        # Escaped to ASCII, so that it can be printed whatever the terminal's encoding.
        typer.echo(json.dumps({"text": text, **prediction.to_json()}))
        spoiled += prediction.error is not None
    return spoiled


def _print_table(answers: Iterator[tuple[str, Prediction]]) -> int:
    found = list(answers)
    print_predictions([text for text, _ in found], [prediction for _, prediction in found])
    return sum(prediction.error is not None for _, prediction in found)
