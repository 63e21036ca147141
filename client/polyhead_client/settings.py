"""The arguments of both clients, including TLS and proxy, checked once."""

from __future__ import annotations

import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import tritonclient.http

from polyhead_client import tracing
from polyhead_client.batches import LONGEST_REQUEST
from polyhead_client.errors import UsageError, mapped
from polyhead_client.operations import Operations
from polyhead_client.replicas import Replicas
from polyhead_client.request import GRPC_PACKAGE, Deadline, check_count, check_seconds, import_extra
from polyhead_client.retry import RetryLoop, RetryPolicy, Send

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FRAMING = ("host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding",
           "inference-header-content-length", "traceparent")  # fmt: skip
USER_AGENT = f"polyhead-client/{version('polyhead-client')}"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: which servers to trust, and this client's own certificate. ``https://`` is what turns encryption on.

    Attributes:
        ca_file: the certificate authorities to trust; the system's if None.
        client_cert: this client's certificate chain, for servers that ask for one.
        client_key: its private key, if the key is not in the same file.
    """

    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def context(self) -> ssl.SSLContext:
        """The context for HTTP connections.

        Raises:
            UsageError: a file cannot be read or is not PEM.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.client_cert is not None:
                context.load_cert_chain(self.client_cert, self.client_key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"tls: {self} cannot be used ({error})") from error
        return context


@dataclass(frozen=True, slots=True)
class Network:
    """What all transports need: gRPC reads `tls`, HTTP its `context`, which is there if a replica is encrypted."""

    tls: Tls | None
    context: ssl.SSLContext | None
    proxy: SplitResult | None
    connect_timeout_s: float
    max_connections: int
    user_agent: str


class Settings(ABC):
    """Where and how to ask. `Client` and `AsyncClient` take these arguments.

    Args:
        servers: ``host:port``, with or without ``http://`` or ``https://`` (``https`` encrypts, also for gRPC). A list
            names replicas that serve the same model.
        model: the model's name on the server.
        protocol: ``http`` (Triton's port 8000) or ``grpc`` (8001; needs the extra ``grpc``).
        version: the model's version; the newest if empty.
        timeout_s: how long a whole call may take, including retries; for `stream` each request. The time begins when
            the call sends its first request, not while it waits for its turn (see max_connections).
        batch_size: texts per request. A longer list is split. A batch that the server refuses as too long is split too.
        max_request_bytes: longest request; lists are split by it too.
        api_key: sent as ``Authorization: Bearer …``.
        headers: sent with every request (over gRPC as metadata).
        tls: which servers to trust, and this client's certificate.
        proxy: ``http://user:password@host:port``; the proxy variables of the environment are not read.
        user_agent: written before the package's own.
        retry: when to ask again, and how often.
        max_connections: requests to one replica at a time, each on its own HTTP connection; further calls wait for
            their turn. Under gevent each native thread has its own.
        connect_timeout_s: how long it may take to open a connection, before another replica is tried.

    Raises:
        UsageError: an argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "127.0.0.1:8000",
        model: str = "gpt2_classifier",
        protocol: Literal["http", "grpc"] = "http",
        version: str = "",
        timeout_s: float = 30.0,
        batch_size: int = 64,
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
        if protocol not in ("http", "grpc"):
            raise UsageError(f"protocol must be 'http' or 'grpc', got {protocol!r}")
        if not isinstance(version, str):
            raise UsageError(f"version must be a str such as '1', got {version!r}")
        if not isinstance(model, str) or not model:
            raise UsageError(f"model must name a model, got {model!r}")
        if check_count("max_request_bytes", max_request_bytes) < 2**16:
            raise UsageError(f"max_request_bytes must be at least {2**16}, got {max_request_bytes}")
        self.model = model
        self.protocol = protocol
        self.timeout_s = check_seconds("timeout_s", timeout_s)
        self.batch_size = check_count("batch_size", batch_size)
        self.max_request_bytes = max_request_bytes
        replicas = Replicas(servers)
        self.replicas = tuple(replica.address for replica in replicas.all)
        if tls is not None and not all(replica.secure for replica in replicas.all):
            raise UsageError("tls encrypts nothing by itself: write the servers as 'https://host:port'")
        secure = any(replica.secure for replica in replicas.all)
        self._network = Network(
            tls=tls,
            context=(tls or Tls()).context() if secure else None,
            proxy=None if proxy is None else _check_proxy(proxy),
            connect_timeout_s=check_seconds("connect_timeout_s", connect_timeout_s),
            max_connections=check_count("max_connections", max_connections),
            user_agent=f"{user_agent} {USER_AGENT}".strip(),
        )
        self._headers = _check_headers({"User-Agent": self._network.user_agent, **(headers or {})}, api_key)
        self._operations = Operations(
            RetryLoop(replicas, retry or RetryPolicy()),
            tritonclient.http if protocol == "http" else import_extra("tritonclient.grpc", GRPC_PACKAGE),
            model,
            version,
            self.batch_size,
            max_request_bytes,
        )
        self._most_turns = self._network.max_connections * len(self.replicas)
        self._closed = False
        self._open()

    @abstractmethod
    def _open(self) -> None: ...  # prepares the transport, without a connection yet

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.replicas)}, {self.model!r}, {self.protocol!r})"

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if self._closed:
            raise UsageError("this client is closed; make a new one", model=self.model)
        return Deadline(self.timeout_s if timeout_s is None else check_seconds("timeout_s", timeout_s))

    @contextmanager
    def _attempt(self, step: Send) -> Iterator[dict[str, str]]:
        """A span around one request, and the request's headers. Exceptions become errors of this package."""
        call, address = step.call, step.replica.address
        attributes: dict[str, str | int] = {
            "server.address": address,
            "polyhead.model": call.model,
            "polyhead.texts": call.texts,
            "polyhead.attempt": step.attempt,
        }
        with (
            tracing.span(f"request {call.kind}", attributes, client=True) as trace,
            mapped(model=call.model, replica=address, protocol=self.protocol, timeout_s=step.deadline.timeout_s),
        ):
            yield self._headers | trace


def _check_proxy(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return parts
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"proxy must be a URL such as 'http://proxy:3128' ({error})") from error
    raise UsageError("proxy must be a URL such as 'http://proxy:3128'")


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
