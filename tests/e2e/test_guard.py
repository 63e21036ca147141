"""deploy/nginx/guard.js before a real server: it refuses, with a reason, what Triton answers with 500 or dies of."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from loadtest.local_server import LocalServer
from polyhead_client import Client, Tls
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.proxied import KEY, Proxied

INFER = "/v2/models/gpt2_classifier/infer"
GOOD = json_body(["Rain.", "Snow."], ["SCORES"])


@pytest.fixture(scope="module")
def proxied(served: LocalServer) -> Iterator[Proxied]:
    """A proxy before the server."""
    places = {"INFERENCE": served.url("http"), "METRICS": served.url("metrics"), "PROBE": served.url("probe")}
    with Proxied(**places) as running:
        yield running


def with_input(**fields: Any) -> bytes:
    """GOOD, with other fields in its input."""
    return json.dumps(GOOD | {"inputs": [GOOD["inputs"][0] | fields]}).encode()


def with_fields(**fields: Any) -> bytes:
    """GOOD, with other fields."""
    return json.dumps(GOOD | fields).encode()


REFUSED = {
    "nothing": (b"", 400, "empty"),
    "no JSON": (b"{", 400, "must be JSON"),
    "NaN": (b"NaN", 400, "must be JSON"),
    "nested JSON": (b"[" * 200_000, 400, "must be JSON"),
    "a list": (b"[]", 400, "must be an object"),
    "a number for an id": (with_fields(id=1), 400, "id"),
    "no input": (with_fields(inputs=[]), 400, "inputs"),
    "two inputs": (with_fields(inputs=GOOD["inputs"] * 2), 400, "inputs"),
    "an output without a name": (with_fields(outputs=[{}]), 400, "outputs"),
    "parameters in a list": (with_fields(parameters=[]), 400, "parameters"),
    "a parameter in an object": (with_fields(parameters={"top_k": {}}), 400, "top_k"),
    "shared memory": (with_input(parameters={"shared_memory_region": "x"}), 400, "shared_memory_region"),
    "a text for a truth value": (
        with_fields(outputs=[{"name": "SCORES", "parameters": {"binary_data": 1}}]),
        400,
        "true",
    ),
    "another type": (with_input(datatype="INT32"), 400, "BYTES"),
    "a wrapping shape": (with_input(shape=[2**32, 1]), 400, "shape"),
    "a negative shape": (with_input(shape=[-1, 1]), 400, "shape"),
    "no texts": (with_input(shape=[0, 1], data=[]), 400, "one text or more"),
    "texts of no length": (with_input(shape=[2, 0], data=[]), 400, "shape"),
    "a fraction in a shape": (with_input(shape=[2.0, 1]), 400, "whole numbers"),
    "a shape that does not match": (with_input(shape=[3, 1]), 400, "as many strings"),
    "numbers for texts": (with_input(data=[1, 2]), 400, "as many strings"),
    "half a surrogate pair": (with_input(data=["\ud83d", "Snow."]), 400, "surrogate"),
    "a name twice": (json.dumps(GOOD).encode()[:-1] + b', "outputs": [{}]}', 400, "outputs"),
    "a name twice, with an escape": (json.dumps(GOOD).encode()[:-1] + b', "output\\u0073": []}', 400, "escapes"),
    "a huge exponent": (json.dumps(GOOD).encode()[:-1] + b', "more": {"x": -1E+999}}', 400, "too large"),
    "a number with many digits": (json.dumps(GOOD).encode()[:-1] + b', "more": ' + b"9" * 400 + b"}", 400, "too large"),
}

LABELS = {"parameters": {"classification": 3}}
ENDS_TRITON = {
    "PREDICTION": with_fields(outputs=[{"name": "PREDICTION"} | LABELS]),
    "SCHEMA": with_fields(outputs=[{"name": "SCORES"} | LABELS, {"name": "SCHEMA"} | LABELS]),
    "another output": with_fields(outputs=[{"name": "TOKEN_COUNT"} | LABELS]),
    "no label": with_fields(outputs=[{"name": "PREDICTION", "parameters": {"classification": 0}}]),
    "the input": with_input(**LABELS),
    "the request": with_fields(**LABELS),
    "parameters twice": b'{"inputs": %s, "outputs": [{"name": "PREDICTION", "parameters": {"classification": 3}, '
    b'"parameters": {}}]}' % json.dumps(GOOD["inputs"]).encode(),
    "classification twice": b'{"inputs": %s, "outputs": [{"name": "SCHEMA", "parameters": {"classification": 3, '
    b'"classification": 3}}]}' % json.dumps(GOOD["inputs"]).encode(),
    "the name twice": b'{"inputs": %s, "outputs": [{"name": "PREDICTION", "name": "SCORES", "parameters": '
    b'{"classification": 3}}]}' % json.dumps(GOOD["inputs"]).encode(),
    "the name twice, but not elsewhere": b'{"inputs": %s, "outputs": [{"name": "PREDICTION", "name": "SCORES", '
    b'"parameters": {"classification": 3}}], "parameters": {"x": {}}}' % json.dumps(GOOD["inputs"]).encode(),
    "an escaped name": with_fields(outputs=[{"name": "PREDICTION"} | LABELS]).replace(b'"classif', b'"\\u0063lassif'),
    "an escaped value": with_fields(outputs=[{"name": "PREDICTION"} | LABELS]).replace(b'"PRED', b'"\\u0050RED'),
    "SCORES and NUL": with_fields(outputs=[{"name": "SCORES\0"} | LABELS]),
}


@pytest.mark.parametrize("body", ENDS_TRITON.values(), ids=ENDS_TRITON)
def test_classification_of_other_outputs_is_refused(proxied: Proxied, served: LocalServer, body: bytes) -> None:
    """What ends Triton with a division by zero is refused, however it is written, also before binary tensors."""
    data = b"".join(struct.pack("<I", len(text)) + text for text in (b"Rain.", b"Snow."))
    with_binary = body.replace(b'"data": ["Rain.", "Snow."]', b'"parameters": {"binary_data_size": 18}')
    for sent, headers in ((body, {}), (with_binary + data, {"Inference_Header_Content_Length": str(len(with_binary))})):
        status, _, said = proxied.ask(INFER, sent, **headers)
        assert status == 400, said
    assert infer_json(served.url("http"), GOOD)[0] == 200
    assert sum("ready http=" in line for line in served.lines) == 1, "the server was restarted"


def test_classification_of_scores_passes(proxied: Proxied) -> None:
    """Triton's classification extension works for SCORES."""
    status, _, said = proxied.ask(INFER, with_fields(outputs=[{"name": "SCORES"} | LABELS, {"name": "TOKEN_COUNT"}]))
    assert status == 200
    assert len(json.loads(said)["outputs"][0]["data"]) == 6


@pytest.mark.parametrize(("body", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(proxied: Proxied, body: bytes, status: int, message: str) -> None:
    """The caller learns what is wrong; nothing of it reaches Triton."""
    answered, headers, said = proxied.ask(INFER, body)
    assert answered == status, said
    assert headers["Content-Type"].startswith("application/json")
    assert message in json.loads(said)["error"]


@pytest.mark.parametrize(
    ("length", "size"), [("9999", 18), ("x", 18), ("-1", 18), ("0", 18), (None, 17), (None, 18), (None, 19), (None, -1)]
)
def test_lying_binary_tensors_are_refused(proxied: Proxied, length: str | None, size: int) -> None:
    """A length or size that is not the body's is the caller's mistake."""
    data = b"".join(struct.pack("<I", len(text)) + text for text in (b"Rain.", b"Snow."))
    described = {"name": "TEXT", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [described], "outputs": [{"name": "SCORES"}]}).encode()
    said = str(len(head)) if length is None else length
    answered, _, _ = proxied.ask(INFER, head + data, Inference_Header_Content_Length=said)
    assert answered == (200 if (length, size) == (None, 18) else 400)


@pytest.mark.parametrize(
    "data", [b"\x06\0\0\0Rain.", b"\x05\0\0\0Rain.\0\0\0", b"\x02\0\0\0Rain.", b"\xff\xff\xff\xffRain.", b"", b"\0\0\0"]
)
def test_lying_binary_texts_are_refused(proxied: Proxied, data: bytes) -> None:
    """A text that says another length than it has would cost the others of its batch their answers."""
    described = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [described], "outputs": [{"name": "SCORES"}]}).encode()
    status, _, said = proxied.ask(INFER, head + data, Inference_Header_Content_Length=str(len(head)))
    assert status == 400
    assert "inputs[0]" in json.loads(said)["error"]


def test_compressed_bodies_are_refused(proxied: Proxied) -> None:
    """Triton would unpack them behind every cap."""
    status, _, _ = proxied.ask(INFER, gzip.compress(json.dumps(GOOD).encode()), Content_Encoding="gzip")
    assert status == 415


@pytest.mark.parametrize("path", ["/%", "/v2/models/%00/infer", "*", "no path"])
def test_unreadable_first_line_is_no_failure(proxied: Proxied, path: str) -> None:
    """A request line that nginx itself cannot read is the caller's mistake, too, not a 500."""
    plain = socket.create_connection(("localhost", proxied.port), timeout=10)
    with proxied.trust.wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("unit", ['\\"', "\\\\", '\\":', "\\u0041", '9e999, \\"', "x"])
def test_long_texts_are_read_in_linear_time(proxied: Proxied, unit: str) -> None:
    """A text that fills the cap is answered quickly, whatever it is made of."""
    body = json.dumps(json_body(["TEXT HERE"], ["TOKEN_COUNT"])).replace("TEXT HERE", unit * (250_000 // len(unit)))
    began = time.monotonic()
    status, _, said = proxied.ask(INFER, body.encode())
    assert status == 200, said
    assert time.monotonic() - began < 5


def test_texts_that_are_not_utf8_are_the_models_business(proxied: Proxied) -> None:
    """Such a text gets its own error; the other texts of the request are answered."""
    body = json.dumps(json_body(["Rain.", "MARK"], ["PREDICTION"])).encode().replace(b"MARK", b"\xff\xfe")
    status, _, said = proxied.ask(INFER, body)
    assert status == 200
    good, bad = (json.loads(row) for row in json.loads(said)["outputs"][0]["data"])
    assert "heads" in good
    assert "UTF-8" in bad["error"]


def test_what_is_right_passes_unchanged(served: LocalServer, proxied: Proxied) -> None:
    """Nested data, escapes, NUL, pairs of surrogates and texts like JSON are answered as without the proxy."""
    texts = ['{"inputs": [], "shape": [1.5]}', "\\ud800", "NUL \0 here", "🙂 \U0010ffff", '"id": 1, "id": 2', "[" * 500]
    for data in (texts, [[text] for text in texts]):
        body = json.dumps(json_body(texts, ["SCORES", "PREDICTION"], top_k=2) | {"id": "7"})
        body = json.dumps(json.loads(body) | {"inputs": [json.loads(body)["inputs"][0] | {"data": data}]})
        status, _, said = proxied.ask(INFER, body.encode())
        assert (status, json.loads(said)) == infer_json(served.url("http"), body.encode())
        assert status == 200
    with (
        Client(served.url("http")) as direct,
        Client(f"https://localhost:{proxied.port}", api_key=KEY, tls=Tls(ca_file=proxied.certificate)) as client,
    ):
        np.testing.assert_array_equal(client.scores(texts), direct.scores(texts))
        assert client.classify(texts) == direct.classify(texts)
        assert client.schema() == direct.schema()
