"""The fake server: what it answers, how it fails, and the port of the loopback interface that it can listen on."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from polyhead_client.async_client import AsyncClient
from polyhead_client.client import Client
from polyhead_client.errors import NotConnectedError
from polyhead_client.replicas import Replica
from polyhead_client.request import HEADER_LENGTH, Deadline, HttpReply, HttpRequest
from polyhead_client.schema import HeadKind, ModelSchema
from polyhead_client.testing.answers import Answer, count_tokens, pack, prediction_json, score_row, unpack

ADDRESS = "fake.invalid:8000"

HEADS: tuple[dict[str, Any], ...] = (
    {"name": "topic", "kind": HeadKind.SINGLE_LABEL, "labels": ["news", "sport", "science"]},
    {"name": "mood", "kind": HeadKind.MULTI_LABEL, "labels": ["happy", "sad"], "thresholds": [0.5, 0.4]},
    {"name": "stars", "kind": HeadKind.REGRESSION},
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What happens instead of an answer.

    Attributes:
        status: an HTTP status, with `message` as Triton's error and `headers`.
        refused: the connection is refused.
        broken: the connection breaks after the request was read.
        hang_s: seconds before the answer, or before the status if there is one. The client's deadline may end first.
        body: bytes instead of a Triton response.
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
        answer: the answers, as a mapping by text or a function. A text that is not in the mapping gets the first label,
            no labels, or 0.
        heads: the schema's heads, as in a checkpoint's ``config.json``.
        max_length: the schema's, in tokens; the fake counts words.
        max_batch_size: longer requests are refused as Triton refuses them.
        failure: what happens to every request, until it is None again.
        failures: what happens to the next requests, one each, before `failure` applies.
        keep_alive: behind a port, whether a connection stays open. False closes it without a notice.
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
    def schema(self) -> ModelSchema:
        """The heads as the client reads them."""
        return ModelSchema.from_json(self._schema_json())

    def client(self, servers: str | Sequence[str] = ADDRESS, **options: Any) -> Client:
        """A `Client` that asks this fake, whatever its addresses."""
        client = Client(servers, **options)
        client._transport = _FakeTransport(self)
        return client

    def async_client(self, servers: str | Sequence[str] = ADDRESS, **options: Any) -> AsyncClient:
        """An `AsyncClient` that asks this fake, whatever its addresses."""
        client = AsyncClient(servers, **options)
        client._transport = _AsyncFakeTransport(self)
        return client

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Runs it on a free port of the loopback interface and yields ``host:port``."""
        server = _QuietServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def next_failure(self) -> Failure:
        """What happens to the current request."""
        with self._lock:
            return self.failures.pop(0) if self.failures else self.failure or Failure()

    def reply(self, request: HttpRequest, failure: Failure) -> HttpReply:
        """The answer to a request, after it has waited and if the connection has not failed."""
        if failure.status is not None:
            error = json.dumps({"error": failure.message}).encode()
            return HttpReply(failure.status, {name.lower(): value for name, value in failure.headers.items()}, error)
        if failure.body is not None:
            return HttpReply(200, {}, failure.body)
        _, _, _, model, *rest = request.path.split("/")
        if rest[-1] != "infer":
            return HttpReply(200)
        return self._infer(request, unquote(model), unquote(rest[1]) if rest[0] == "versions" else "")

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
        """Datatype, shape and data of one output."""
        shape = [len(texts), 1]
        match name:
            case "PREDICTION":
                rows = [prediction_json(text, self._answer(text), self.schema, parameters) for text in texts]
                return "BYTES", shape, pack(rows)
            case "SCHEMA":
                return "BYTES", shape, pack([self._schema_json()] * len(texts))
            case "TOKEN_COUNT":
                counts = [count_tokens(text, self.max_length) for text in texts]
                return "INT32", shape, struct.pack(f"<{len(counts)}i", *counts)
            case _:
                scores = [score_row(text, self._answer(text), self.schema) for text in texts]
                flat = [score for row in scores for score in row]
                return "FP32", [len(scores), len(scores[0])], struct.pack(f"<{len(flat)}f", *flat)

    def _answer(self, text: str) -> Answer:
        if not text.strip():
            return {}
        return self.answer(text) if callable(self.answer) else self.answer.get(text, {})

    def _schema_json(self) -> bytes:
        return json.dumps({"max_length": self.max_length, "heads": list(self.heads)}).encode()


class _FakeTransport:
    """Replaces the connections of `Client`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        failure = self._server.next_failure()
        time.sleep(min(failure.hang_s, deadline.remaining_s()))
        _raise_failure(failure, deadline)
        return self._server.reply(request, failure)

    def close(self) -> None:
        """Nothing is open."""


class _AsyncFakeTransport:
    """Replaces the connections of `AsyncClient`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        failure = self._server.next_failure()
        await asyncio.sleep(min(failure.hang_s, deadline.remaining_s()))
        _raise_failure(failure, deadline)
        return self._server.reply(request, failure)

    async def close(self) -> None:
        """Nothing is open."""


def _raise_failure(failure: Failure, deadline: Deadline) -> None:
    if deadline.remaining_s() <= 0:
        raise TimeoutError("the fake did not answer in time")
    if failure.refused:
        raise NotConnectedError("connection refused by the fake")
    if failure.broken:
        raise ConnectionResetError("connection broken by the fake")


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing, because clients that hang up are part of the tests."""


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    """The class of http.server that answers for this fake."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet per response; two would wait for each other (Nagle, delayed ACK)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            failure = fake.next_failure()
            time.sleep(failure.hang_s)
            if failure.broken or failure.refused:
                self.close_connection = True
                return
            reply = fake.reply(HttpRequest(self.command, self.path, dict(self.headers.items()), body), failure)
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
                self.wfile.flush()
            except OSError:
                self.close_connection = True  # the client stopped waiting
            self.close_connection = self.close_connection or not fake.keep_alive

        def log_message(self, format: str, *arguments: Any) -> None:
            """Prints nothing."""

    return Handler
