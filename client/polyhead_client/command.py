"""The command line: ``polyhead-client classify | explain | ui | schema | ready``, and the options that all have.

Exit codes: 0 all texts were answered, 1 some text has an error, 2 bad usage or no answer from the server, 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import functools
import inspect
import json as json_module
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polyhead_client.client import Client
from polyhead_client.console import (
    Line,
    answer_lines,
    print_explanation,
    print_json,
    print_schema,
    print_table,
    read_lines,
    read_text,
)
from polyhead_client.errors import PolyheadClientError, TextError, UsageError
from polyhead_client.explain import FEWEST_TEXTS, MOST_TEXTS
from polyhead_client.settings import Tls
from polyhead_client.stream import CONCURRENCY

INTERRUPTED = 130  # what shells report for SIGINT
MOST_WORKERS = 256

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Every option is also an environment variable: POLYHEAD_CLIENT_ and its name, for example "
    "POLYHEAD_CLIENT_TOP_K for --top-k. Whole files (CSV, JSON lines, Parquet): `polyhead-score --server HOST:PORT`. "
    "Exit codes: 0 all texts were answered, 1 some texts have an error, 2 bad usage or no answer from the server.",
)

CLASSIFY_EPILOG = """
Examples:

* `polyhead-client classify "a fast parser for JSON" --top-k 3`

* `cut -f2 texts.tsv | polyhead-client classify --json > answers.jsonl`

* `POLYHEAD_CLIENT_SERVER="a:8000 b:8000" polyhead-client classify "a fast parser for JSON"`

A model with fields takes JSON objects of them instead of texts: `'{"Title": "Rain", "Body": "It is coming."}'`.

To score whole files (CSV, JSON lines, Parquet) with a running server, use `polyhead-score --server HOST:PORT`.
"""

EXPLAIN_EPILOG = """
Examples:

* `polyhead-client explain "a fast parser for JSON" --head topic`

* `polyhead-client explain --label sport --json < article.txt`
"""

UI_EPILOG = """
Examples:

* `polyhead-client ui --golden runs/debian/golden.jsonl`

* `polyhead-client ui --model-version 2 --compare-version 1`

* `polyhead-client ui --server a:8000 --compare-server b:8000`

The page needs the extra `ui`: in the project folder, `pip install './client[ui]'`. It loads nothing from other sites,
and the API key stays in this program.
"""


@app.callback()
def root() -> None:
    """Asks a Polyhead text classifier on a Triton server."""


def _server(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="Server", **settings)


def _ask(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="What is asked", **settings)


SERVERS_HELP = "host:port of a replica; several allowed, in the variable separated by spaces."
KEY_HELP = "Sent as 'Authorization: Bearer KEY'. The variable keeps the key out of `ps`."


@contextmanager
def connect(
    server: Annotated[list[str], _server(SERVERS_HELP, metavar="HOST:PORT")] = ["127.0.0.1:8000"],  # noqa: B006 # it is copied
    model: Annotated[str, _server("The model's name.")] = "gpt2_classifier",
    model_version: Annotated[str, _server("The model's version; the newest if empty.")] = "",
    protocol: Annotated[Literal["http", "grpc"], _server("Triton's HTTP port is 8000, its gRPC port 8001.")] = "http",
    timeout_s: Annotated[float, _server("Seconds that a request may take, including retries.")] = 30.0,
    api_key: Annotated[str | None, _server(KEY_HELP, metavar="KEY", show_default=False)] = None,
    header: Annotated[
        list[str] | None, _server("Sent with every request; several allowed.", metavar="NAME:VALUE")
    ] = None,
    ca_file: Annotated[Path | None, _server("PEM file of the authorities to trust, for https:// servers.")] = None,
    client_cert: Annotated[Path | None, _server("PEM file of this client's certificate chain.")] = None,
    client_key: Annotated[Path | None, _server("PEM file of this client's private key.")] = None,
    proxy: Annotated[str | None, _server("HTTP proxy.", metavar="http://HOST:PORT")] = None,
) -> Iterator[Client]:
    """The client for these options. Errors inside the block become a line on standard error and an exit code."""
    try:
        pairs = [one.partition(":") for one in header or []]
        for name, colon, _ in pairs:
            if not colon:
                raise UsageError(f"header must be NAME:VALUE, got {name!r}")
        files = [None if path is None else str(path) for path in (ca_file, client_cert, client_key)]
        with Client(
            server,
            model,
            protocol,
            model_version,
            timeout_s,
            api_key=api_key,
            headers={name.strip(): value.strip() for name, _, value in pairs},
            tls=Tls(*files) if any(files) else None,
            proxy=proxy,
            user_agent="polyhead-client-cli",
            max_connections=MOST_WORKERS,
        ) as client:
            yield client
    except BrokenPipeError:  # as in `… | head`; typer ends without a message
        raise
    except (PolyheadClientError, OSError) as error:
        typer.echo(f"polyhead-client: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("polyhead-client: stopped", err=True)
        raise typer.Exit(INTERRUPTED) from error


def client_command(**settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose first parameter is the client, and gives it the options of `connect` as well."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = list(inspect.signature(connect, eval_str=True).parameters.values())

        @functools.wraps(function)
        def run(**options: Any) -> None:
            with connect(**{one.name: options.pop(one.name) for one in shared}) as client:
                function(client, **options)

        # typer reads both.
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        # typer would add the command's name to the prefix: POLYHEAD_CLIENT_CLASSIFY_SERVER.
        return app.command(context_settings={"auto_envvar_prefix": "POLYHEAD_CLIENT"}, **settings)(run)

    return register


@client_command(epilog=CLASSIFY_EPILOG)
def classify(
    client: Client,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; without any, one per line of standard input."),
    ] = None,
    top_k: Annotated[int | None, _ask("Labels per head.", min=1)] = None,
    threshold: Annotated[float | None, _ask("Replaces the thresholds of multi_label heads.", min=0, max=1)] = None,
    reject_below: Annotated[
        float | None, _ask("No label for single_label heads whose best score is below; 0 rejects none.", min=0, max=1)
    ] = None,
    private: Annotated[bool, _ask("Keep the texts out of the server's answer log.")] = False,
    batch_size: Annotated[int, _ask("Texts per request.", min=1)] = 64,
    workers: Annotated[int, _ask("Requests at a time.", min=1, max=MOST_WORKERS)] = CONCURRENCY,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text instead of a table.")] = False,
) -> None:
    """Classifies texts, or the lines of standard input."""
    lines: Iterator[Line]
    if texts:
        lines = map(Line, texts)
    elif sys.stdin.isatty():
        raise UsageError("no texts: give them as arguments, or pipe one per line into standard input")
    else:
        lines = read_lines(typer.get_binary_stream("stdin"))
        first = next(lines, None)
        if first is None:
            raise UsageError("no texts: standard input is empty")
        lines = chain([first], lines)
    answers = answer_lines(client, lines, batch_size, workers, top_k, threshold, reject_below, private)
    errors = print_json(answers) if json else print_table(answers)
    if errors:
        raise typer.Exit(1)


@client_command(epilog=EXPLAIN_EPILOG)
def explain(
    client: Client,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="One text; without it, the whole of standard input.")
    ] = None,
    head: Annotated[str | None, _ask("Explain this head only.")] = None,
    label: Annotated[str | None, _ask("Explain the score of this label, not of the answer.")] = None,
    words: Annotated[int, _ask("Words per table, the strongest first.", min=1)] = 10,
    most_texts: Annotated[int, _ask("Texts that the server may score for this.", min=FEWEST_TEXTS)] = MOST_TEXTS,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all words.")] = False,
) -> None:
    """Says how much each word of one text moved the scores, by leaving it out."""
    if text is None:
        if sys.stdin.isatty():
            raise UsageError("no text: give it as the argument, or pipe it into standard input")
        text = read_text(typer.get_binary_stream("stdin"))
    try:
        explanation = client.explain(text, head, label, most_texts)
    except TextError as error:
        typer.echo(f"polyhead-client: {error}", err=True)
        raise typer.Exit(1) from error
    if json:
        typer.echo(json_module.dumps({"text": text, **explanation.to_json()}))
    else:
        print_explanation(explanation, words)


def _page(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="The page", **settings)


def _compare(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="A second model beside it", show_default=False, **settings)


@client_command(epilog=UI_EPILOG)
def ui(
    client: Client,
    context: typer.Context,
    host: Annotated[
        str, _page("Where the page is served. With 0.0.0.0, whoever reaches this machine can ask the model.")
    ] = "127.0.0.1",
    port: Annotated[int, _page("The page's port; 0 takes a free one.", min=0, max=65535)] = 7860,
    golden: Annotated[
        Path | None,
        _page("golden.jsonl of a checkpoint, or the checkpoint: its texts become examples.", metavar="FILE"),
    ] = None,
    compare_server: Annotated[
        list[str] | None, _compare("host:port of the second model; the first one's if empty.", metavar="HOST:PORT")
    ] = None,
    compare_model: Annotated[str | None, _compare("Its name; the first one's if empty.")] = None,
    compare_version: Annotated[str | None, _compare("Its version; the newest if empty.")] = None,
    compare_api_key: Annotated[
        str | None,
        _compare("Its key. The first one's key and headers are sent only to the first one's servers.", metavar="KEY"),
    ] = None,
) -> None:
    """Serves a page to try the model in a browser: scores as bars, thresholds as sliders, reasons, whole files."""
    from polyhead_client.ui.asking import Side, side_titles
    from polyhead_client.ui.start import is_loopback, start
    from polyhead_client.ui.texts import read_golden

    def say(address: str) -> None:
        typer.echo(f"Open {address} in a browser. Ctrl-C ends the page.")
        if not is_loopback(host):
            typer.echo("Whoever reaches this address can ask the model, with your API key if there is one.", err=True)

    examples = [] if golden is None else read_golden(golden)
    shared = {name: context.params[name] for name in inspect.signature(connect).parameters}
    with ExitStack() as opened:
        clients, versions = [client], [shared["model_version"]]
        if compare_server or compare_model or compare_version or compare_api_key:
            other = shared | {"model": compare_model or shared["model"], "model_version": compare_version or ""}
            if compare_server and set(compare_server) != set(shared["server"]):
                other |= {"server": compare_server, "api_key": None, "header": None}
            if compare_api_key:
                other["api_key"] = compare_api_key
            clients.append(opened.enter_context(connect(**other)))
            versions.append(other["model_version"])
        titles = side_titles(
            [(one.replicas, one.model, version) for one, version in zip(clients, versions, strict=True)]
        )
        start([Side(*pair) for pair in zip(titles, clients, strict=True)], examples, host, port, say)


@client_command()
def schema(
    client: Client,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Shows the heads and labels of the served model."""
    print_schema(client.schema(), json)


@client_command()
def ready(
    client: Client,
    wait_s: Annotated[float, typer.Option(help="Seconds to wait until a server is ready.", min=0)] = 0.0,
    canary: Annotated[
        bool, typer.Option(help="Have a text answered. --no-canary asks Triton's endpoint, which is no sign of health.")
    ] = True,
) -> None:
    """Says whether a server answers: exit code 0 if one does, otherwise 2.

    Example: `polyhead-client ready --wait-s 120 && ./nightly-scoring.sh`
    """
    if wait_s and canary:
        client.wait_until_ready(wait_s)
    elif not client.is_ready(canary):
        raise UsageError(f"not ready: none of {', '.join(client.replicas)} answered for {client.model}")
    typer.echo("ready")
