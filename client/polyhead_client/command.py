"""The command line: ``polyhead-client classify``.

Exit codes: 0 all texts were answered, 1 some text has an error, 2 bad usage or no answer from the server.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyhead_client.client import Client
from polyhead_client.errors import PolyheadClientError, UsageError
from polyhead_client.prediction import HeadPrediction, MultiLabel, Prediction, Regression, SingleLabel

LONGEST_TEXT = 60  # characters of a text in the table

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Protocol(StrEnum):
    """How the server is spoken to."""

    HTTP = "http"
    GRPC = "grpc"


@app.callback()
def root() -> None:
    """Asks a Polyhead text classifier on a Triton server."""
    # A callback keeps `classify` a subcommand: typer makes an only command the whole program.


@app.command()
def classify(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Texts; the lines of standard input if none."),
    ] = None,
    url: Annotated[str, typer.Option(envvar="POLYHEAD_URL", help="host:port of the server.")] = "localhost:8000",
    model: Annotated[str, typer.Option(envvar="POLYHEAD_MODEL", help="The model's name.")] = "gpt2_classifier",
    protocol: Annotated[
        Protocol, typer.Option(envvar="POLYHEAD_PROTOCOL", help="Triton's gRPC port is 8001.")
    ] = Protocol.HTTP,
    top_k: Annotated[int | None, typer.Option(envvar="POLYHEAD_TOP_K", min=1, help="Labels a head.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(envvar="POLYHEAD_THRESHOLD", min=0, max=1, help="For all multi_label heads."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", envvar="POLYHEAD_JSON", help="One JSON object a text.")] = False,
    timeout_s: Annotated[
        float, typer.Option(envvar="POLYHEAD_TIMEOUT_S", help="Seconds to wait for an answer.")
    ] = 30.0,
) -> None:
    """Classifies texts, or the lines of standard input."""
    try:
        asked = texts or _read_stdin()
        with Client(url, model, protocol.value, timeout_s=timeout_s) as client:
            predictions = client.classify(asked, top_k, threshold)
    except PolyheadClientError as error:
        typer.echo(f"polyhead-client: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        for text, prediction in zip(asked, predictions, strict=True):
            # Escaped to ASCII, so that it can be printed whatever the terminal's encoding.
            typer.echo(json.dumps({"text": text, **prediction.to_json()}))
    else:
        _print_table(asked, predictions)
    if any(prediction.error is not None for prediction in predictions):
        raise typer.Exit(1)


def _read_stdin() -> list[str]:
    if sys.stdin.isatty():
        raise UsageError("no texts: give them as arguments, or pipe one a line into standard input")
    data = typer.get_binary_stream("stdin").read()
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UsageError(f"standard input is not UTF-8: line {line} has byte 0x{byte:02x}") from error
    if lines[-1] == "":
        lines.pop()  # what follows the last line's end is no text
    if not lines:
        raise UsageError("no texts: standard input is empty")
    # Blank lines stay: answers line up with lines.
    return [line.removesuffix("\r") for line in lines]


def _print_table(texts: list[str], predictions: list[Prediction]) -> None:
    console = Console()
    heads = list(dict.fromkeys(name for prediction in predictions for name in prediction.heads))
    failed = any(prediction.error is not None for prediction in predictions)
    table = Table(show_lines=any(len(prediction.heads) > 1 for prediction in predictions))
    for name in ("text", *heads, "tokens", *(["error"] if failed else [])):
        table.add_column(_plain(name), overflow="fold")
    for text, prediction in zip(texts, predictions, strict=True):
        shown = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        cells = [_plain(shown), *(_plain(_describe(prediction.heads.get(name))) for name in heads)]
        cells.append(Text(f"{prediction.token_count}{' (truncated)' if prediction.truncated else ''}"))
        if failed:
            cells.append(Text(_printable(prediction.error or ""), style="red"))
        table.add_row(*cells)
    console.print(table)


def _describe(head: HeadPrediction | None) -> str:
    match head:
        case None:
            return ""
        case SingleLabel(top):
            return "\n".join(f"{one.label} {one.score:.2f}" for one in top)
        case MultiLabel(labels):
            return "\n".join(f"{one.label} {one.score:.2f}" for one in labels) or "none"
        case Regression(value):
            return f"{value:.4g}"


def _plain(text: str) -> Text:
    return Text(_printable(text))


def _printable(text: str) -> str:
    # Texts and labels are data: an escape sequence in them must not reach the terminal.
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
