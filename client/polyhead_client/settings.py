"""What both clients are made with: one list of arguments, checked once."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Literal

import tritonclient.http

from polyhead_client.conversation import Conversation
from polyhead_client.deadline import Deadline
from polyhead_client.errors import UsageError
from polyhead_client.grpc_channels import import_grpc
from polyhead_client.network import Network, Proxy, Tls
from polyhead_client.operations import Operations
from polyhead_client.replicas import Replicas
from polyhead_client.request import check_count, check_seconds
from polyhead_client.retry import RetryPolicy

LONGEST_REQUEST = 16 * 2**20  # bytes: what reverse proxies commonly let through
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FRAMING = ("host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding",
           "inference-header-content-length", "traceparent")  # fmt: skip
try:
    USER_AGENT = f"polyhead-client/{version('polyhead-client')}"
except PackageNotFoundError:
    USER_AGENT = "polyhead-client"


class Settings(ABC):
    """Where and how to ask; `Client` and `AsyncClient` take these arguments.

    Args:
        servers: ``host:port``, with or without ``http://`` or ``https://`` (``https`` encrypts, for gRPC too), or a
            list: replicas that serve the same model.
        model: the model's name on the server.
        protocol: ``http`` (Triton's port 8000) or ``grpc`` (8001; needs the extra ``polyhead-client[grpc]``).
        version: the model's version; the newest if empty.
        timeout_s: how long a call may take in all, retries included; for `stream` each request.
        batch_size: texts a request; None asks the server for its ``max_batch_size``, once. A list that is longer is
            split, and so is a batch that the server refuses as too long.
        max_request_bytes: longest request; lists are split by it too.
        api_key: sent as ``Authorization: Bearer …``.
        headers: sent with every request (over gRPC as metadata).
        tls: whom to trust, and this client's certificate.
        proxy: ``http://user:password@host:port``; the environment's proxies are not read.
        user_agent: put before the package's own.
        retry: how often and how soon to repeat what the server did not compute.
        max_connections: HTTP connections to one replica at a time; further requests wait for one. Under gevent each
            native thread has as many.
        connect_timeout_s: how long making a connection may take; then another replica is tried.

    Raises:
        UsageError: an argument is of the wrong type or out of range.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "localhost:8000",
        model: str = "gpt2_classifier",
        protocol: Literal["http", "grpc"] = "http",
        version: str = "",
        timeout_s: float = 30.0,
        batch_size: int | None = 64,
        *,
        max_request_bytes: int = LONGEST_REQUEST,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        proxy: str | None = None,
        user_agent: str = "",
        retry: RetryPolicy | None = None,
        max_connections: int = 64,
        connect_timeout_s: float = 5.0,
    ) -> None:
        if not isinstance(version, str):
            raise UsageError(f"version must be a str such as '1', got {version!r}")
        if not isinstance(model, str) or not model:
            raise UsageError(f"model must name a model, got {model!r}")
        if batch_size is not None:
            check_count("batch_size", batch_size)
        if check_count("max_request_bytes", max_request_bytes) < 2**16:
            raise UsageError(f"max_request_bytes must be at least {2**16}, got {max_request_bytes}")
        self.model = model
        self.protocol = protocol
        self.timeout_s = check_seconds("timeout_s", timeout_s)
        replicas = Replicas(servers)
        self.replicas = tuple(replica.address for replica in replicas.all)
        if tls is not None and not all(replica.secure for replica in replicas.all):
            raise UsageError("tls encrypts nothing by itself: write the servers as 'https://host:port'")
        if tls is not None:
            tls.context()  # a missing file is the constructor's error, not the first request's
        self._network = Network(
            tls=tls,
            proxy=None if proxy is None else Proxy.parse(proxy),
            connect_timeout_s=check_seconds("connect_timeout_s", connect_timeout_s),
            max_connections=check_count("max_connections", max_connections),
            user_agent=f"{user_agent} {USER_AGENT}".strip(),
        )
        self._headers = _check_headers({"User-Agent": self._network.user_agent, **(headers or {})}, api_key)
        conversation = Conversation(replicas, retry or RetryPolicy())
        self._operations = Operations(
            conversation, _protocol_module(protocol), model, version, batch_size, max_request_bytes
        )
        self._closed = False
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Prepares the transport, without a connection yet."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.replicas)}, {self.model!r}, {self.protocol!r})"

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if self._closed:
            raise UsageError("this client is closed; make a new one", model=self.model)
        return Deadline(self.timeout_s if timeout_s is None else check_seconds("timeout_s", timeout_s))


def _protocol_module(protocol: str) -> ModuleType:
    if protocol not in ("http", "grpc"):
        raise UsageError(f"protocol must be 'http' or 'grpc', got {protocol!r}")
    module: ModuleType = tritonclient.http if protocol == "http" else import_grpc("tritonclient.grpc")
    return module


def _check_headers(headers: dict[Any, Any], api_key: str | None) -> dict[str, str]:
    if api_key is not None:
        if not isinstance(api_key, str) or not api_key.isascii() or not api_key.isprintable() or not api_key:
            raise UsageError("api_key must be printable ASCII, in one line")
        headers["Authorization"] = f"Bearer {api_key}"
    for name, value in headers.items():
        if isinstance(name, str) and name.lower() in FRAMING:
            raise UsageError(f"headers: {name!r} is the transport's own")
        texts = isinstance(name, str) and isinstance(value, str)
        if not texts or not HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise UsageError(f"headers: {name!r} must be a header's name, and its value printable ASCII in one line")
    return headers
