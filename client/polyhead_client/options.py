"""The command line's options; each is also an environment variable: ``--text-column`` is ``POLYHEAD_TEXT_COLUMN``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from polyhead_client.client import Client
from polyhead_client.errors import UsageError
from polyhead_client.network import Tls


class Protocol(StrEnum):
    """How the server is spoken to."""

    HTTP = "http"
    GRPC = "grpc"


def flag(name: str, about: str, **more: Any) -> Any:
    """An option ``--name`` under the one rule for its environment variable."""
    variable = "POLYHEAD_" + name.removeprefix("--").partition("/")[0].upper().replace("-", "_")
    return typer.Option(name, envvar=variable, help=about, **more)


ASK, FILES, SERVER = "What is asked", "Files", "Server"

Servers = Annotated[
    list[str],
    flag("--server", "host:port of a replica; several allowed, in the variable separated by spaces.",
         metavar="HOST:PORT", rich_help_panel=SERVER),
]  # fmt: skip
Model = Annotated[str, flag("--model", "The model's name.", rich_help_panel=SERVER)]
ModelVersion = Annotated[
    str, flag("--model-version", "The model's version; the newest if not given.", rich_help_panel=SERVER)
]
ProtocolName = Annotated[Protocol, flag("--protocol", "Triton's gRPC port is 8001.", rich_help_panel=SERVER)]
TimeoutS = Annotated[
    float,
    flag("--timeout-s", "Seconds a request may take, repetitions included.", rich_help_panel=SERVER),
]
ApiKey = Annotated[
    str | None,
    flag("--api-key", "Sent as 'Authorization: Bearer KEY'; better given in the variable, which `ps` does not show.",
         metavar="KEY", show_default=False, rich_help_panel=SERVER),
]  # fmt: skip
Headers = Annotated[
    list[str] | None,
    flag("--header", "NAME:VALUE to send with every request; several allowed.", metavar="NAME:VALUE",
         rich_help_panel=SERVER),
]  # fmt: skip
CaFile = Annotated[
    Path | None,
    flag("--ca-file", "PEM file of the authorities to trust, for https:// servers.", rich_help_panel=SERVER),
]
ClientCert = Annotated[Path | None, flag("--client-cert", "PEM file of this client's chain.", rich_help_panel=SERVER)]
ClientKey = Annotated[Path | None, flag("--client-key", "PEM file of its key.", rich_help_panel=SERVER)]
Proxy = Annotated[
    str | None,
    flag("--proxy", "An HTTP proxy to go through.", metavar="http://HOST:PORT", rich_help_panel=SERVER),
]
AsJson = Annotated[bool, flag("--json", "JSON instead of a table.")]

TopK = Annotated[int | None, flag("--top-k", "Labels a head.", min=1, rich_help_panel=ASK)]
Threshold = Annotated[
    float | None,
    flag("--threshold", "In place of the multi_label heads' own thresholds.", min=0, max=1, rich_help_panel=ASK),
]
BatchSize = Annotated[int, flag("--batch-size", "Texts a request.", min=1, rich_help_panel=ASK)]
Workers = Annotated[int, flag("--workers", "Requests at a time.", min=1, rich_help_panel=ASK)]
Input = Annotated[
    Path | None,
    flag("--input", "A .csv, .jsonl or .parquet file to score row by row.", metavar="FILE", rich_help_panel=FILES),
]
Output = Annotated[
    Path | None,
    flag("--output", "Where the rows go, with the answers' columns beside their own; .csv, .jsonl or .parquet.",
         metavar="FILE", rich_help_panel=FILES),
]  # fmt: skip
TextColumn = Annotated[str, flag("--text-column", "The column or field to score.", rich_help_panel=FILES)]
Prefix = Annotated[str, flag("--prefix", "Put before the names of the new columns.", rich_help_panel=FILES)]
Restart = Annotated[bool, flag("--restart", "Begin anew, and replace an output that is there.", rich_help_panel=FILES)]
Quiet = Annotated[bool, flag("--quiet", "No progress on standard error.", rich_help_panel=FILES)]


def connect(
    servers: list[str],
    model: str,
    model_version: str,
    protocol: Protocol,
    timeout_s: float,
    api_key: str | None,
    headers: list[str] | None,
    ca_file: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    proxy: str | None,
    batch_size: int = 64,
    workers: int = 1,
) -> Client:
    """The client that the options describe.

    Raises:
        UsageError: they describe none.
    """
    pairs = [header.partition(":") for header in headers or []]
    for name, colon, _ in pairs:
        if not colon:
            raise UsageError(f"header must be NAME:VALUE, got {name!r}")
    files = [None if path is None else str(path) for path in (ca_file, client_cert, client_key)]
    return Client(
        servers,
        model,
        protocol.value,
        model_version,
        timeout_s,
        batch_size,
        api_key=api_key,
        headers={name.strip(): value.strip() for name, _, value in pairs},
        tls=Tls(*files) if any(files) else None,
        proxy=proxy,
        user_agent="polyhead-client-cli",
        max_connections=max(64, workers),
    )
