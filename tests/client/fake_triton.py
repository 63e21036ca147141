"""A tiny HTTP server that speaks as much KServe v2, binary and JSON, as the client needs.

Its answer to a text is a function of the test's; everything between is tritonclient's real code.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

SCHEMA = {
    "max_length": 16,
    "heads": [
        {"name": "topic", "kind": "single_label", "labels": ["news", "sport", "science"], "thresholds": None,
         "weight": 1.0, "temperature": 1.0, "parent": None, "parent_of": None},
        {"name": "mood", "kind": "multi_label", "labels": ["happy", "sad"], "thresholds": [0.5, 0.4],
         "weight": 1.0, "temperature": 1.0, "parent": None, "parent_of": None},
        {"name": "stars", "kind": "regression", "labels": [], "thresholds": None,
         "weight": 1.0, "temperature": 1.0, "parent": None, "parent_of": None},
    ],
}  # fmt: skip
SCORES = [0.2, 0.7, 0.1, 0.9, 0.3, 3.25]
ANSWER = {
    "heads": {
        "topic": {"kind": "single_label", "labels": ["sport"], "scores": [0.7]},
        "mood": {"kind": "multi_label", "labels": ["happy"], "scores": [0.9], "thresholds": [0.5]},
        "stars": {"kind": "regression", "value": 3.25},
    },
    "token_count": 4,
    "truncated": False,
}


def answer(text: str) -> dict[str, Any]:
    """The same answer to every text, an error to a blank one."""
    return ANSWER if text.strip() else {"error": "the text is empty or blank"}


@dataclass
class FakeTriton:
    """What the server does, and what it was asked; both may be changed while it runs."""

    url: str = ""
    answer: Callable[[str], Any] = answer
    failure: tuple[int, str] | None = None  # status and message of every response
    raw_body: bytes | None = None  # sent in place of a response
    delay_s: float = 0.0
    close_after: bool = False  # closes each connection without saying so
    requests: list[dict[str, Any]] = field(default_factory=list)

    def outputs(self, texts: list[str], names: list[str]) -> Iterator[tuple[str, str, list[int], bytes]]:
        """Name, datatype, shape and bytes of each output that was asked for."""
        rows = len(texts)
        for name in names:
            match name:
                case "PREDICTION":
                    answers = [self.answer(text) for text in texts]
                    yield (
                        name,
                        "BYTES",
                        [rows, 1],
                        pack([each if isinstance(each, bytes) else json.dumps(each).encode() for each in answers]),
                    )
                case "SCHEMA":
                    yield name, "BYTES", [rows, 1], pack([json.dumps(SCHEMA).encode()] * rows)
                case "SCORES":
                    nan = [float("nan")] * len(SCORES)
                    flat = [score for text in texts for score in (SCORES if text.strip() else nan)]
                    yield name, "FP32", [rows, len(SCORES)], struct.pack(f"<{len(flat)}f", *flat)


def pack(rows: list[bytes]) -> bytes:
    """Triton's BYTES: each element after its length."""
    return b"".join(struct.pack("<I", len(row)) + row for row in rows)


def unpack(data: bytes) -> list[str]:
    """The inverse of `pack`."""
    rows, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        rows.append(data[start + 4 : start + 4 + length].decode())
        start += 4 + length
    return rows


@contextmanager
def serve_fake() -> Iterator[FakeTriton]:
    """Runs the server on a free port of the loopback interface."""
    fake = FakeTriton()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet a response: two would wait for each other (Nagle, delayed ACK)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header_length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            header = json.loads(body[:header_length])
            texts = unpack(body[header_length:])
            names = [output["name"] for output in header["outputs"]]
            fake.requests.append(
                {
                    "path": self.path,
                    "texts": texts,
                    "outputs": names,
                    "parameters": header.get("parameters", {}),
                }
            )
            time.sleep(fake.delay_s)
            if fake.failure is not None:
                status, message = fake.failure
                return self.respond(status, json.dumps({"error": message}).encode())
            if fake.raw_body is not None:
                return self.respond(200, fake.raw_body)
            outputs = list(fake.outputs(texts, names))
            described = [
                {
                    "name": name,
                    "datatype": kind,
                    "shape": shape,
                    "parameters": {"binary_data_size": len(data)},
                }
                for name, kind, shape, data in outputs
            ]
            head = json.dumps({"model_name": "fake", "model_version": "1", "outputs": described}).encode()
            return self.respond(200, head + b"".join(data for *_, data in outputs), len(head))

        def respond(self, status: int, body: bytes, header_length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if header_length is not None:
                self.send_header("Inference-Header-Content-Length", str(header_length))
            self.end_headers()
            try:
                self.wfile.write(body)
                self.wfile.flush()
            except OSError:
                self.close_connection = True  # the client gave up waiting
            if fake.close_after:
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: a test's output is its own."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Nothing: clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.url = f"127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
