"""A fake server for your own tests. It answers by text, records its requests, and fails on demand.

    fake = FakeServer(answer={"a goal": {"topic": "sport", "mood": ["happy"], "stars": 4.5}})
    with fake.client() as client:
        assert client.classify("a goal")["topic"].label == "sport"

It replaces the network only, so everything above is the client's real code. `FakeServer.serve` puts it behind a real
HTTP port, for programs that are given an address.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from polyhead_client.async_client import AsyncClient
from polyhead_client.client import Client
from polyhead_client.errors import NotConnectedError
from polyhead_client.operations import NO_SCORE
from polyhead_client.replicas import Replica
from polyhead_client.request import HEADER_LENGTH, Deadline, HttpReply, HttpRequest
from polyhead_client.schema import HeadKind, HeadSchema, ModelSchema

__all__ = ["Asked", "Failure", "FakeServer"]

ADDRESS = "fake.invalid:8000"
BLANK = "the text is empty or blank"
FIELD = re.compile(r"\{([^{}]*)\}")
OPTIONAL = re.compile(r"\[\[(.*?)\]\]")

HEADS: tuple[dict[str, Any], ...] = (
    {"name": "topic", "kind": HeadKind.SINGLE_LABEL, "labels": ["news", "sport", "science"]},
    {"name": "mood", "kind": HeadKind.MULTI_LABEL, "labels": ["happy", "sad"], "thresholds": [0.5, 0.4]},
    {"name": "stars", "kind": HeadKind.REGRESSION},
)

# A mapping by head: a label, labels or scores by label, or a number. Or the wire's own object (with ``heads`` or
# ``error``), or bytes.
Answer = Mapping[str, Any] | bytes


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
    request_id: str = ""


@dataclass
class FakeServer:
    """One fake model.

    Attributes:
        answer: the answers, as a mapping by text or a function. A text that is not in the mapping gets the first label,
            no labels, or 0.
        heads: the schema's heads, as in a checkpoint's ``config.json``.
        max_length: the schema's, in tokens; the fake counts words.
        text_template: makes a text of fields, such as ``"[[{Title}. ]]{Review Text}"``. `answer` gets this text. The
            fake knows no escapes.
        max_batch_size: longer requests are refused as Triton refuses them.
        failure: what happens to every request, until it is None again.
        failures: what happens to the next requests, one each, before `failure` applies.
        keep_alive: behind a port, whether a connection stays open. False closes it without a notice.
        requests: the inference requests so far.
    """

    answer: Mapping[str, Answer] | Callable[[str], Answer] = field(default_factory=dict)
    heads: Sequence[Mapping[str, Any]] = HEADS
    max_length: int = 256
    text_template: str | None = None
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
        sent = {name.lower(): value for name, value in request.headers.items()}
        length = int(sent.get(HEADER_LENGTH.lower(), len(request.body)))
        header = json.loads(request.body[:length])
        texts = [text.decode() for text in deserialize_bytes_tensor(request.body[length:])]
        parameters = {name: value for name, value in header.get("parameters", {}).items() if name != "timeout"}
        names = [output["name"] for output in header["outputs"]]
        with self._lock:
            self.requests.append(Asked(texts, names, parameters, model, version, sent, header.get("id", "")))
        if len(texts) > self.max_batch_size:
            refusal = f"inference request batch-size must be <= {self.max_batch_size} for '{model}'"
            return HttpReply(400, {}, json.dumps({"error": refusal}).encode())
        outputs, data = [], b""
        for name in names:
            column = self._column(name, texts, parameters)
            raw = serialize_byte_tensor(column).item() if column.dtype == object else column.tobytes()
            described = {"datatype": np_to_triton_dtype(column.dtype), "shape": column.shape}
            outputs.append({"name": name, **described, "parameters": {"binary_data_size": len(raw)}})
            data += raw
        head = json.dumps({"model_name": model, "model_version": version or "1", "outputs": outputs}).encode()
        return HttpReply(200, {HEADER_LENGTH.lower(): str(len(head))}, head + data)

    def _column(self, name: str, texts: list[str], parameters: dict[str, Any]) -> NDArray[Any]:
        """One output, ``(n, width)``; one row for SCHEMA."""
        texts = [self._render(text) for text in texts]
        match name:
            case "PREDICTION":
                rows = [self._prediction(text, parameters) for text in texts]
                return np.array(rows, dtype=np.object_)[:, None]
            case "SCHEMA":
                return np.array([[self._schema_json()]], dtype=np.object_)
            case "TOKEN_COUNT":
                return np.array([self._count_tokens(text) for text in texts], dtype=np.int32)[:, None]
            case _:
                return np.array([self._scores(text) for text in texts], dtype=np.float32)

    def _answer(self, text: str) -> Answer:
        if not text.strip():
            return {"error": BLANK}
        return self.answer(text) if callable(self.answer) else self.answer.get(text, {})

    def _prediction(self, text: str, parameters: dict[str, Any]) -> bytes:
        answer = self._answer(text)
        if isinstance(answer, bytes):
            return answer
        if "error" not in answer and "heads" not in answer:
            heads = {head.name: _decode(head, answer, parameters) for head in self.schema.heads}
            truncated = len(text.split()) > self.max_length
            answer = {"heads": heads, "token_count": self._count_tokens(text), "truncated": truncated}
        return json.dumps(answer).encode()

    def _scores(self, text: str) -> list[float]:
        answer = self._answer(text)
        if isinstance(answer, bytes) or "error" in answer:
            return [NO_SCORE] * self.schema.width
        return [score for head in self.schema.heads for score in _head_scores(head, answer)]

    def _count_tokens(self, text: str) -> int:
        return min(len(text.split()), self.max_length)

    def _schema_json(self) -> bytes:
        fields = FIELD.findall(self.text_template or "")
        described = {"text_template": self.text_template, "fields": list(dict.fromkeys(fields))}
        return json.dumps({"max_length": self.max_length, "heads": list(self.heads), **described}).encode()

    def _render(self, text: str) -> str:
        """The text of a JSON object of fields; other texts are as they are."""
        if self.text_template is None or not text.lstrip().startswith("{"):
            return text
        try:
            row = json.loads(text)
        except ValueError:
            return text
        values = {name: "" if value is None else str(value) for name, value in row.items()}

        def keep(part: re.Match[str]) -> str:
            return part[1] if any(values.get(name) for name in FIELD.findall(part[1])) else ""

        if not any(value.strip() for value in values.values()):
            return ""
        return FIELD.sub(lambda field: values.get(field[1], ""), OPTIONAL.sub(keep, self.text_template))


def _decode(head: HeadSchema, answer: Mapping[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """A head's part of PREDICTION, decoded from scores as the server decodes them."""
    scores = _head_scores(head, answer)
    if head.kind == HeadKind.REGRESSION:
        return {"kind": head.kind, "value": scores[0]}
    thresholds = head.thresholds or (0.0,) * len(head.labels)
    ranked = sorted(zip(head.labels, scores, thresholds, strict=True), key=lambda one: one[1], reverse=True)
    if head.kind == HeadKind.SINGLE_LABEL:
        top = ranked[: parameters.get("top_k", 1)]
        least = parameters.get("reject_below", head.reject_below)
        answer = {"labels": [one[0] for one in top], "scores": [one[1] for one in top]}
        if least is None:
            return {"kind": head.kind, **answer}
        confidence = top[0][1]
        if head.reject_by == "certainty":
            answer["certainty"] = confidence = round(1 / sum(score**0.5 for score in scores) ** 2, 6)
        return {"kind": head.kind, "label": None if confidence < least else top[0][0], **answer}
    override = parameters.get("threshold")
    ranked = [(label, score, own if override is None else override) for label, score, own in ranked]
    chosen = [one for one in ranked if one[1] >= one[2]][: parameters.get("top_k")]
    labels, passed_scores, passed = ([one[place] for one in chosen] for place in range(3))
    return {"kind": head.kind, "labels": labels, "scores": passed_scores, "thresholds": passed}


def _head_scores(head: HeadSchema, answer: Mapping[str, Any]) -> list[float]:
    """A head's scores. A label without a score has 1; without an answer: the first label, no label, or 0."""
    said = answer.get(head.name)
    if "heads" in answer:
        wire = answer["heads"][head.name]
        said = wire["value"] if "value" in wire else dict(zip(wire["labels"], wire["scores"], strict=True))
    if head.kind == HeadKind.REGRESSION:
        return [float(said or 0.0)]
    if said is None:
        said = head.labels[0] if head.kind == HeadKind.SINGLE_LABEL else ()
    by_label = said if isinstance(said, Mapping) else dict.fromkeys([said] if isinstance(said, str) else said, 1.0)
    if unknown := [label for label in by_label if label not in head.labels]:
        labels = list(head.labels)
        raise AssertionError(f"the fake's answer: head {head.name!r} has labels {labels}, not {unknown[0]!r}")
    return [float(by_label.get(label, 0.0)) for label in head.labels]


@dataclass
class _FakeTransport:
    """Replaces the connections of `Client`."""

    server: FakeServer

    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        failure = self.server.next_failure()
        time.sleep(min(failure.hang_s, deadline.remaining_s()))
        return _reply_in_time(self.server, request, failure, deadline)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class _AsyncFakeTransport:
    """Replaces the connections of `AsyncClient`."""

    server: FakeServer

    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        failure = self.server.next_failure()
        await asyncio.sleep(min(failure.hang_s, deadline.remaining_s()))
        return _reply_in_time(self.server, request, failure, deadline)

    async def close(self) -> None:
        """Nothing is open."""


def _reply_in_time(server: FakeServer, request: HttpRequest, failure: Failure, deadline: Deadline) -> HttpReply:
    if deadline.remaining_s() <= 0:
        raise TimeoutError("the fake did not answer in time")
    if failure.refused:
        raise NotConnectedError("connection refused by the fake")
    if failure.broken:
        raise ConnectionResetError("connection broken by the fake")
    return server.reply(request, failure)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing, because clients that hang up are part of the tests."""


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    """The class of http.server that answers for this fake."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet per response; two would wait for each other (Nagle, delayed ACK)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            failure = fake.next_failure()
            time.sleep(failure.hang_s)
            self.close_connection = not fake.keep_alive
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

        do_GET = do_POST  # noqa: N815 # http.server names it

        def log_message(self, format: str, *arguments: Any) -> None:
            """Prints nothing."""

    return Handler
