"""The proxy's plain JSON, /v1: real answers fit openapi.json, and every error is JSON with its status."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from loadtest.local_server import ROOT, LocalServer
from polyhead_client import Client
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.proxied import Proxied
from tests.tiny import TEXTS

CLASSIFY, SCHEMA = "/v1/classify", "/v1/schema"
INFER = "/v2/models/gpt2_classifier/infer"
DESCRIBED = json.loads((ROOT / "deploy" / "nginx" / "openapi.json").read_text(encoding="utf-8"))
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def proxied(served: LocalServer) -> Iterator[Proxied]:
    """A proxy before the server, which pages of one origin may ask."""
    places = {"INFERENCE": served.url("http"), "METRICS": served.url("metrics"), "PROBE": served.url("probe")}
    with Proxied(**places, ORIGINS=f"{PAGE} http://localhost:3000") as running:
        yield running


def fits(schema: dict[str, Any], value: Any) -> None:
    """Checks a value against a schema of openapi.json."""
    Draft202012Validator(schema | {"components": DESCRIBED["components"]}).validate(value)


def checked(path: str, method: str, status: int, headers: HTTPMessage, body: bytes) -> Any:
    """The answer's JSON, once openapi.json has proved to describe it."""
    response = DESCRIBED["paths"][path.partition("?")[0]][method]["responses"][str(status)]
    if "$ref" in response:
        response = DESCRIBED["components"]["responses"][response["$ref"].rpartition("/")[2]]
    assert headers["Content-Type"] == "application/json"
    value = json.loads(body)
    fits(response["content"]["application/json"]["schema"], value)
    for name, header in response.get("headers", {}).items():
        fits(header["schema"], int(headers[name]))
    return value


def classify(proxied: Proxied, question: Any, path: str = CLASSIFY, **more: Any) -> tuple[int, Any]:
    """Status and described answer of a question, which may also be the bytes of a body."""
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    status, headers, answer = proxied.ask(path, body, **more)
    return status, checked(path, "post", status, headers, answer)


def test_predictions_are_those_of_the_wire(served: LocalServer, proxied: Proxied) -> None:
    """Plain JSON gets the same predictions as an inference request, with the same options, for texts of every kind."""
    texts = [*TEXTS[:3], "", "NUL \0", "\U0001f642 \u00e9 \u2028", '{"a": 1}', "word " * 500]
    question = {"texts": texts, "top_k": 2, "threshold": 0.25, "reject_below": 0.4, "private": True, "timeout_s": 5}
    fits(DESCRIBED["components"]["schemas"]["Question"], question)
    status, answer = classify(proxied, question)
    wire = infer_json(served.url("http"), json_body(texts, ["PREDICTION"], top_k=2, threshold=0.25, reject_below=0.4))[
        1
    ]
    assert status == 200
    labels = [
        head["label"] for one in answer["predictions"] for head in one.get("heads", {}).values() if "label" in head
    ]
    assert {label is None for label in labels} == {True, False}
    assert answer["predictions"] == [json.loads(row) for row in wire["outputs"][0]["data"]]
    for path in (f"{CLASSIFY}?model=gpt2_classifier", f"{CLASSIFY}?version=1&model=gpt2_classifier"):
        assert classify(proxied, question, path) == (status, answer)
    assert classify(proxied, question | {"model": "gpt2_classifier", "version": 1}) == (status, answer)


def test_a_whole_batch_fits(proxied: Proxied) -> None:
    """A request may have as many texts as the model's batches, and not one more."""
    config = (ROOT / "model_repository" / "gpt2_classifier" / "config.pbtxt").read_text(encoding="utf-8")
    most = int(re.findall(r"max_batch_size: ([0-9]+)", config)[0])
    assert DESCRIBED["components"]["schemas"]["Question"]["properties"]["texts"]["maxItems"] == most
    status, answer = classify(proxied, {"texts": ["Rain."] * most, "top_k": 1000})
    assert (status, len(answer["predictions"])) == (200, most)
    status, answer = classify(proxied, {"texts": ["Rain."] * (most + 1)})
    assert status == 400
    assert f"1 to {most} texts" in answer["error"]


def test_the_schema_is_the_models(served: LocalServer, proxied: Proxied) -> None:
    """GET /v1/schema is the SCHEMA output."""
    status, headers, body = proxied.ask(SCHEMA)
    wire = infer_json(served.url("http"), json_body(["x"], ["SCHEMA"]))[1]
    assert status == 200
    assert checked(SCHEMA, "get", status, headers, body) == json.loads(wire["outputs"][0]["data"][0])


REFUSED = {
    "nothing": (b"", "empty"),
    "no JSON": (b"{", "must be JSON"),
    "nested JSON": (b"[" * 200_000, "must be JSON"),
    "a list": ([], "object"),
    "no texts": ({}, "texts"),
    "an empty list": ({"texts": []}, "texts"),
    "one text": ({"texts": "Rain."}, "texts"),
    "a number for a text": ({"texts": ["Rain.", 1]}, "texts[1]"),
    "null for a text": ({"texts": [None]}, "texts[0]"),
    "a nested field": ({"texts": [{"Title": ["x"]}]}, "texts[0]"),
    "a number that JavaScript cannot hold": (b'{"texts": [{"id": 9007199254740993}]}', "2^53"),
    "a lower one": (b'{"texts": ["x", {"id": -12345678901234567890}]}', "texts[1]"),
    "a version that JavaScript cannot hold": (b'{"texts": ["Rain."], "version": 9007199254740993}', "version"),
    "an unknown name": ({"texts": ["Rain."], "topk": 1}, "topk"),
    "a name twice": (b'{"texts": ["a"], "top_k": 1, "top_k": 2}', "twice"),
    "not UTF-8": (b'{"texts": ["\xff"]}', "UTF-8"),
    "half a surrogate pair": ({"texts": ["\ud83d"]}, "surrogate"),
    "no labels": ({"texts": ["Rain."], "top_k": 0}, "top_k"),
    "half a label": ({"texts": ["Rain."], "top_k": 1.5}, "top_k"),
    "a threshold in a string": ({"texts": ["Rain."], "threshold": "0.5"}, "threshold"),
    "a high threshold": ({"texts": ["Rain."], "threshold": 1.01}, "threshold"),
    "a high bound": ({"texts": ["Rain."], "reject_below": 1.01}, "reject_below"),
    "null for a bound": ({"texts": ["Rain."], "reject_below": None}, "reject_below"),
    "a text for a truth value": ({"texts": ["Rain."], "private": "true"}, "private"),
    "null for a truth value": ({"texts": ["Rain."], "private": None}, "private"),
    "no time": ({"texts": ["Rain."], "timeout_s": 0}, "timeout_s"),
    "a truth value for a time": ({"texts": ["Rain."], "timeout_s": True}, "timeout_s"),
    "a model's path": ({"texts": ["Rain."], "model": "../gpt2_classifier"}, "model"),
    "a number for a model": ({"texts": ["Rain."], "model": 1}, "model"),
    "no version": ({"texts": ["Rain."], "version": 0}, "version"),
    "an object for a version": ({"texts": ["Rain."], "version": {}}, "version"),
    "a list for a version": ({"texts": ["Rain."], "version": [1]}, "version"),
    "objects in lists for a version": ({"texts": ["Rain."], "version": [[{}]]}, "version"),
    "null for a version": ({"texts": ["Rain."], "version": None}, "version"),
    "a truth value for a version": ({"texts": ["Rain."], "version": True}, "version"),
    "a line end in a version": ({"texts": ["Rain."], "version": "1\n"}, "version"),
    "an object for a model": ({"texts": ["Rain."], "model": {"toString": "x"}}, "model"),
    "a line end in a model": ({"texts": ["Rain."], "model": "gpt2_classifier\n"}, "model"),
    "an object for a number": ({"texts": ["Rain."], "top_k": {}}, "top_k"),
    "an object for a time": ({"texts": ["Rain."], "timeout_s": {"valueOf": 1}}, "timeout_s"),
    "an object for texts": ({"texts": {"length": 1, "0": "Rain."}}, "texts"),
    "fields of a model without": ({"texts": ["Rain.", {"Title": "x"}]}, "no fields"),
}


@pytest.mark.parametrize(("question", "reason"), REFUSED.values(), ids=REFUSED)
def test_the_callers_fault_is_400(proxied: Proxied, question: Any, reason: str) -> None:
    """The caller learns what is wrong."""
    status, answer = classify(proxied, question)
    assert status == 400
    assert reason in answer["error"]


def test_other_refusals_have_their_status(proxied: Proxied) -> None:
    """Key, model, method, size and type are told apart, for both routes."""
    good = {"texts": ["Rain."]}
    assert classify(proxied, good, key=None)[0] == 401
    for path in (f"{CLASSIFY}?model=other", f"{CLASSIFY}?version=77"):
        assert classify(proxied, good, path)[0] == 404
    assert classify(proxied, good | {"model": "other"})[0] == 404
    assert classify(proxied, good, f"{CLASSIFY}?model=other&model=more")[0] == 400
    assert classify(proxied, good, f"{CLASSIFY}?top_k=1")[0] == 400
    for twice in ({"model": {}}, {"model": ["gpt2_classifier"]}, {"version": {}, "model": "gpt2_classifier"}):
        assert classify(proxied, good | twice, f"{CLASSIFY}?model=gpt2_classifier&version=1")[0] == 400
    assert classify(proxied, good, method="GET")[0] == 405
    assert classify(proxied, {"texts": ["x" * 300_000]})[0] == 413
    assert classify(proxied, good, Content_Encoding="gzip")[0] == 415
    assert classify(proxied, good, Content_Type="multipart/form-data; boundary=x")[0] == 415
    for kind in ("application/json; charset=utf-8", "application/x-www-form-urlencoded"):
        assert classify(proxied, good, Content_Type=kind)[0] == 200
    for path, key, wanted in ((SCHEMA, None, 401), (f"{SCHEMA}?model=other", "", 401)):
        status, headers, body = proxied.ask(path, key=key)
        checked(path, "get", status, headers, body)
        assert status == wanted
    status, headers, body = proxied.ask(SCHEMA, b"{}")
    checked(SCHEMA, "get", status, headers, body)
    assert (status, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/triton/gpt2_classifier", "/failure", "/v1", "/v1/", "/v1/other", f"{CLASSIFY}/"])
def test_nothing_else_is_there(proxied: Proxied, path: str) -> None:
    """Inner paths and unknown ones get 404 as JSON."""
    for body in (None, b"{}"):
        status, headers, answer = proxied.ask(path, body)
        assert (status, headers["Content-Type"]) == (404, "application/json")
        assert "/v1/classify" in json.loads(answer)["error"]


@pytest.mark.parametrize("way", ["generate", "generate_stream"])
def test_generate_is_closed(proxied: Proxied, way: str) -> None:
    """Triton's generate endpoints are closed; the answer names what to use."""
    for path in (f"/v2/models/gpt2_classifier/{way}", f"/v2/models/gpt2_classifier/versions/1/{way}"):
        status, _, answer = proxied.ask(path, b'{"TEXT": "Rain."}')
        assert status == 404
        assert "/v1/classify" in json.loads(answer)["error"]


def test_nginx_answers_errors_in_json(proxied: Proxied) -> None:
    """What nginx refuses by itself is JSON, too."""
    broken: list[tuple[str, dict[str, Any]]] = [
        (SCHEMA, {"X": "y" * 9000}), (CLASSIFY, {"Transfer_Encoding": "gzip"}),
        ("/v1/openapi.json", {"If_Match": "x", "If_Unmodified_Since": "Mon, 01 Jan 2001 00:00:00 GMT"}),
    ]  # fmt: skip
    for path, headers in broken:
        status, answered, body = proxied.ask(path, **headers)
        assert 400 <= status <= 501
        assert answered["Content-Type"] == "application/json"
        assert json.loads(body)["error"]


def test_the_description_is_served(proxied: Proxied) -> None:
    """Anyone may read openapi.json."""
    status, _, body = proxied.ask("/v1/openapi.json", key=None)
    assert (status, json.loads(body)) == (200, DESCRIBED)
    for schema in DESCRIBED["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_pages_of_origins_may_ask(proxied: Proxied, origin: str) -> None:
    """A page of ORIGINS may ask, and may read refusals; cookies are never allowed."""
    status, headers, body = proxied.ask(CLASSIFY, method="OPTIONS", key=None, Origin=origin)
    assert (status, body, headers["Access-Control-Allow-Headers"]) == (204, b"", "Authorization, Content-Type")
    assert "POST" in headers["Access-Control-Allow-Methods"]
    for path, sent, key in ((CLASSIFY, b'{"texts": ["Rain."]}', True), (SCHEMA, None, True), (SCHEMA, None, False)):
        more: dict[str, Any] = {} if key else {"key": ""}
        _, headers, _ = proxied.ask(path, sent, Origin=origin, **more)
        assert headers["Access-Control-Allow-Origin"] == origin
        assert headers["Access-Control-Allow-Credentials"] is None
        assert "Retry-After" in headers["Access-Control-Expose-Headers"]
        assert headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://appxexample.com", f"{PAGE}.evil.com", f"x{PAGE}", "null", "*", ""])
def test_other_pages_may_not_ask(proxied: Proxied, origin: str) -> None:
    """Other origins get no permission."""
    assert proxied.ask(CLASSIFY, method="OPTIONS", Origin=origin)[0] == 405
    assert proxied.ask(SCHEMA, Origin=origin)[1]["Access-Control-Allow-Origin"] is None


def test_no_page_may_ask_unless_origins_says_so(served: LocalServer) -> None:
    """Without ORIGINS no page may ask, with `*` each page may."""
    for settings, allowed in (({}, None), ({"ORIGINS": "*"}, "*")):
        with Proxied(INFERENCE=served.url("http"), **settings) as proxied:
            assert proxied.ask(SCHEMA, Origin=PAGE)[1]["Access-Control-Allow-Origin"] == allowed


def test_the_default_model_is_a_setting(served: LocalServer) -> None:
    """MODEL names the model that is asked; a caller may name another."""
    with Proxied(INFERENCE=served.url("http"), MODEL="other") as proxied:
        assert classify(proxied, {"texts": ["Rain."]})[0] == 404
        assert classify(proxied, {"texts": ["Rain."], "model": "gpt2_classifier"})[0] == 200


class Fake(BaseHTTPRequestHandler):
    """A server that answers each POST alike, or ends the connection without an answer."""

    status, message, asked = 503, "", 0

    def do_POST(self) -> None:
        """One request."""
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.status == 0:
            self.close_connection = True
            return
        body = json.dumps({"error": self.message}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@contextmanager
def fake(status: int, message: str = "") -> Iterator[tuple[str, type[Fake]]]:
    """A fake server's address and its class, which counts the requests."""
    kind = type("OneFake", (Fake,), {"status": status, "message": message})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", kind
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "message", "answered", "after"),
    [
        (503, "the queue is full; retry in 2.4 s", 503, {"3"}),
        (503, "the queue is full; retry in 0.1 s", 503, {"1"}),
        (503, "Request timeout expired", 503, {"1", "2", "3"}),
        (500, "Stub process is not healthy", 500, {None}),
        (400, "request parameter top_k", 400, {None}),
        (0, "", 503, {"1", "2", "3"}),
    ],
)
def test_refusals_say_when_to_retry(status: int, message: str, answered: int, after: set[str | None]) -> None:
    """The model's own estimate becomes Retry-After; a failure stays 500; every answer is as described."""
    with fake(status, message) as (place, _), Proxied(INFERENCE=place, PROBE="127.0.0.1:9") as proxied:
        found, headers, body = proxied.ask(CLASSIFY, b'{"texts": ["Rain."]}')
    assert (found, headers["Retry-After"] in after) == (answered, True)
    error = checked(CLASSIFY, "post", found, headers, body)["error"]
    assert error == message or status in (0, 500)


def test_too_many_requests_and_no_server_are_described() -> None:
    """429 and 503 of the proxy itself are as described."""
    with Proxied(INFERENCE="127.0.0.1:9", RATE="1r/m", BURST="1") as proxied:
        found = [classify(proxied, {"texts": ["Rain."]}) for _ in range(3)]
    assert [status for status, _ in found] == [503, 503, 429]
    assert "no server can answer" in found[0][1]["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFER, json.dumps(json_body(["Rain."], ["SCORES"])).encode()),
        (CLASSIFY, b'{"texts": ["Rain."]}'),
        (SCHEMA, None),
    ],
)
def test_a_request_that_ended_a_server_reaches_no_other(path: str, body: bytes | None) -> None:
    """A request that one server did not answer is not sent to the next one; the caller hears that it was sent."""
    with fake(0) as (one, first), fake(0) as (two, second), Proxied(INFERENCE=f"{one} {two}") as proxied:
        for asked in (1, 2):
            status, headers, answer = proxied.ask(path, body)
            assert (status, headers["Retry-After"] in {"1", "2", "3"}) == (503, True)
            assert "ended before it answered" in json.loads(answer)["error"]
            assert first.asked + second.asked == asked


def test_a_server_that_is_down_costs_nothing(served: LocalServer) -> None:
    """A request that could not be sent to one server is sent to the next."""
    with Proxied(INFERENCE=f"127.0.0.1:9 {served.url('http')}") as proxied:
        assert {classify(proxied, {"texts": ["Rain."]})[0] for _ in range(6)} == {200}
        assert {proxied.ask(INFER, json.dumps(json_body(["x"], ["SCORES"])).encode())[0] for _ in range(6)} == {200}


def test_long_bodies_are_read_in_linear_time(proxied: Proxied) -> None:
    """A body that fills the cap is answered quickly, whatever it is made of."""
    for unit in ('\\"', "\\\\", '\\":', "\\u0041", "x"):
        body = ('{"texts": ["' + unit * (250_000 // len(unit)) + '"]}').encode()
        began = time.monotonic()
        assert classify(proxied, body)[0] == 200
        assert time.monotonic() - began < 5


def test_the_client_is_not_needed(served: LocalServer, proxied: Proxied) -> None:
    """The SDK reads the same labels as plain JSON gives."""
    _, answer = classify(proxied, {"texts": TEXTS[:2]})
    with Client(served.url("http")) as client:
        direct = client.classify(TEXTS[:2])
    for row, prediction in zip(answer["predictions"], direct, strict=True):
        assert row["token_count"] == prediction.token_count
