"""The fake server: a model without a network, and what befalls those who ask it."""

from __future__ import annotations

import asyncio
import json
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from polyhead_client.async_client import AsyncClient
from polyhead_client.client import Client
from polyhead_client.deadline import Deadline
from polyhead_client.errors import NotConnectedError
from polyhead_client.http_wire import HEADER_LENGTH, HttpReply, HttpRequest
from polyhead_client.replicas import Replica
from polyhead_client.schema import Schema
from polyhead_client.testing.answers import count, decode, head_scores, pack, unpack, unwrapped
from polyhead_client.testing.port import listen

ADDRESS = "fake.invalid:8000"
BLANK = "the text is empty or blank"

# By head: a label, labels or scores by label, or a number. Or the wire's own object (``heads`` or ``error``), or bytes.
Answer = Mapping[str, Any] | bytes

HEADS: tuple[dict[str, Any], ...] = (
    {"name": "topic", "kind": "single_label", "labels": ["news", "sport", "science"]},
    {"name": "mood", "kind": "multi_label", "labels": ["happy", "sad"], "thresholds": [0.5, 0.4]},
    {"name": "stars", "kind": "regression"},
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What happens in place of an answer.

    Attributes:
        status: an HTTP status, with `message` as Triton's error and `headers`.
        refused: the connection is refused.
        broken: the connection breaks after the request was read.
        hang_s: seconds before the answer, or before the status if there is one; the client's deadline may end first.
        body: bytes in place of a Triton response.
    """

    status: int | None = None
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    refused: bool = False
    broken: bool = False
    hang_s: float = 0.0
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference request, as the server read it."""

    texts: list[str]
    outputs: list[str]
    parameters: dict[str, Any]
    model: str
    version: str
    headers: dict[str, str]


@dataclass
class FakeServer:
    """One fake model.

    Attributes:
        answer: what it says of a text: a mapping by text, or a function. Texts that a mapping lacks get the first
            label, no labels, or 0.
        heads: the schema's heads, as in a checkpoint's ``config.json``.
        max_length: the schema's, in tokens; the fake counts words.
        max_batch_size: longer requests are refused as Triton refuses them.
        failure: what befalls every request until it is None again.
        failures: what befalls the next requests, one each, before `failure` is looked at.
        keep_alive: over a port, whether a connection stays open; False closes it without saying so.
        requests: the inference requests so far.
    """

    answer: Mapping[str, Answer] | Callable[[str], Answer] = field(default_factory=dict)
    heads: Sequence[Mapping[str, Any]] = HEADS
    max_length: int = 256
    max_batch_size: int = 64
    failure: Failure | None = None
    failures: list[Failure] = field(default_factory=list)
    keep_alive: bool = True
    requests: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def schema(self) -> Schema:
        """The heads as the client reads them."""
        return Schema.from_json(self._schema_json())

    def client(self, servers: str | Sequence[str] = ADDRESS, **options: Any) -> Client:
        """A `Client` that asks this fake, whatever its addresses."""
        client = Client(servers, **options)
        client._transport = _Blocking(self)
        return client

    def async_client(self, servers: str | Sequence[str] = ADDRESS, **options: Any) -> AsyncClient:
        """An `AsyncClient` that asks this fake, whatever its addresses."""
        client = AsyncClient(servers, **options)
        client._transport = _Awaited(self)
        return client

    def next_failure(self) -> Failure:
        """What befalls the request that comes now."""
        with self._lock:
            return self.failures.pop(0) if self.failures else self.failure or Failure()

    def reply(self, request: HttpRequest, failure: Failure) -> HttpReply:
        """The answer to a request, once it has waited and unless the connection failed."""
        if failure.status is not None:
            error = json.dumps({"error": failure.message}).encode()
            return HttpReply(failure.status, {name.lower(): value for name, value in failure.headers.items()}, error)
        if failure.body is not None:
            return HttpReply(200, {}, failure.body)
        _, _, _, model, *rest = request.path.split("/")
        version = rest[1] if rest[0] == "versions" else ""
        match rest[-1]:
            case "infer":
                return self._infer(request, unquote(model), unquote(version))
            case "config":
                return _json({"name": unquote(model), "max_batch_size": self.max_batch_size})
            case "stats":
                counted = {"name": unquote(model), "version": "1", "inference_count": len(self.requests)}
                return _json({"model_stats": [counted]})
            case _:
                return HttpReply(200)

    def _infer(self, request: HttpRequest, model: str, version: str) -> HttpReply:
        named = {name.lower(): value for name, value in request.headers.items()}
        length = int(named.get(HEADER_LENGTH.lower(), len(request.body)))
        header = json.loads(request.body[:length])
        texts = unpack(request.body[length:])
        parameters = {name: value for name, value in header.get("parameters", {}).items() if name != "timeout"}
        names = [output["name"] for output in header["outputs"]]
        with self._lock:
            self.requests.append(Asked(texts, names, parameters, model, version, named))
        if len(texts) > self.max_batch_size:
            refusal = f"inference request batch-size must be <= {self.max_batch_size} for '{model}'"
            return HttpReply(400, {}, json.dumps({"error": refusal}).encode())
        columns = [self._column(name, texts, parameters) for name in names]
        described = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, (kind, shape, data) in zip(names, columns, strict=True)
        ]
        head = json.dumps({"model_name": model, "model_version": version or "1", "outputs": described}).encode()
        body = head + b"".join(data for _, _, data in columns)
        return HttpReply(200, {HEADER_LENGTH.lower(): str(len(head))}, body)

    def _column(self, name: str, texts: list[str], parameters: dict[str, Any]) -> tuple[str, list[int], bytes]:
        match name:
            case "PREDICTION":
                return "BYTES", [len(texts), 1], pack([self._prediction(text, parameters) for text in texts])
            case "SCHEMA":
                return "BYTES", [len(texts), 1], pack([self._schema_json()] * len(texts))
            case "TOKEN_COUNT":
                counts = [count(text, self.max_length) for text in texts]
                return "INT32", [len(texts), 1], struct.pack(f"<{len(counts)}i", *counts)
            case _:
                rows = [self._scores(text) for text in texts]
                flat = [score for row in rows for score in row]
                return "FP32", [len(rows), len(rows[0])], struct.pack(f"<{len(flat)}f", *flat)

    def _say(self, text: str) -> Answer:
        return self.answer(text) if callable(self.answer) else self.answer.get(text, {})

    def _prediction(self, text: str, parameters: dict[str, Any]) -> bytes:
        said: Answer = self._say(text) if text.strip() else {"error": BLANK}
        if isinstance(said, bytes):
            return said
        if "error" not in said and "heads" not in said:
            heads = {head.name: decode(head, said.get(head.name), parameters) for head in self.schema.heads}
            truncated = len(text.split()) > self.max_length
            said = {"heads": heads, "token_count": count(text, self.max_length), "truncated": truncated}
        return json.dumps(said).encode()

    def _scores(self, text: str) -> list[float]:
        said = self._say(text) if text.strip() else b""
        schema = self.schema
        if isinstance(said, bytes) or "error" in said:
            return [math.nan] * schema.width
        return [score for head in schema.heads for score in head_scores(head, unwrapped(said, head))]

    def _schema_json(self) -> bytes:
        return json.dumps({"max_length": self.max_length, "heads": list(self.heads)}).encode()

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Runs it on a free port of the loopback interface and gives ``host:port``."""
        with listen(self) as address:
            yield address


class _Blocking:
    """In the place of connections."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        failure = self._server.next_failure()
        time.sleep(min(failure.hang_s, deadline.remaining_s()))
        _fail(failure, deadline)
        return self._server.reply(request, failure)

    def close(self) -> None:
        """Nothing is open."""


class _Awaited:
    """In the place of connections, for asyncio."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        failure = self._server.next_failure()
        await asyncio.sleep(min(failure.hang_s, deadline.remaining_s()))
        _fail(failure, deadline)
        return self._server.reply(request, failure)

    async def close(self) -> None:
        """Nothing is open."""


def _fail(failure: Failure, deadline: Deadline) -> None:
    if deadline.remaining_s() <= 0:
        raise TimeoutError("the fake did not answer in time")
    if failure.refused:
        raise NotConnectedError("connection refused by the fake")
    if failure.broken:
        raise ConnectionResetError("connection broken by the fake")


def _json(value: Any) -> HttpReply:
    return HttpReply(200, {}, json.dumps(value).encode())
