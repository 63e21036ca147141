"""The nginx of deploy/nginx in front of a real server: what it lets through, and what it refuses."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from polyhead_client import Client, RetryPolicy, Tls
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.processes import ONE_THREAD, model_processes
from tests.e2e.proxied import KEY, Proxied
from tests.tiny import TEXTS

INFER = "/v2/models/gpt2_classifier/infer"
BODY = json.dumps(json_body(TEXTS[:3], ["SCORES"])).encode()


@pytest.fixture(scope="module")
def proxied(served: LocalServer) -> Iterator[Proxied]:
    """A proxy before the server."""
    places = {"INFERENCE": served.url("http"), "METRICS": served.url("metrics"), "PROBE": served.url("probe")}
    with Proxied(**places, CLIENT_TIMEOUT="1s") as running:
        yield running


@pytest.fixture(autouse=True)
def _server_lives(served: LocalServer) -> Iterator[None]:
    yield
    assert infer_json(served.url("http"), BODY)[0] == 200
    assert sum("ready http=" in line for line in served.lines) == 1, "the server was restarted"


def test_the_client_gets_the_same_answers(served: LocalServer, proxied: Proxied) -> None:
    """Through the proxy, the SDK with TLS and key, and plain JSON, get the same answers as without it."""
    with (
        Client(served.url("http")) as direct,
        Client(f"https://localhost:{proxied.port}", api_key=KEY, tls=Tls(ca_file=proxied.certificate)) as client,
    ):
        assert client.classify(TEXTS) == direct.classify(TEXTS)
        assert client.is_ready()
        assert client.is_ready(canary=False)
    status, headers, body = proxied.ask(INFER, BODY)
    assert (status, json.loads(body)) == infer_json(served.url("http"), BODY)
    assert headers["Retry-After"] is None
    lines = (proxied.folder / "access.log").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["client"] for line in lines if INFER in line} == {"tests"}


@pytest.mark.parametrize("key", [None, "another.key~of_tests", KEY.upper(), f"{KEY}x", ""])
def test_inference_needs_a_key(proxied: Proxied, key: str | None) -> None:
    """Inference needs exactly this key; health needs none."""
    status, headers, body = proxied.ask(INFER, BODY, key=key)
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="polyhead"')
    assert "error" in json.loads(body)
    assert proxied.ask("/ready", key=key)[0] == 200


@pytest.mark.parametrize(
    "path", ["/ready", "/v2/health/live", "/v2/health/ready", "/v2/models/gpt2_classifier/ready", "/metrics"]
)
def test_health_and_metrics_are_open(proxied: Proxied, path: str) -> None:
    """Probes and Prometheus get through, only with GET."""
    assert proxied.ask(path)[0] == 200
    assert proxied.ask(path, b"{}")[0] == 403


def test_both_metrics(proxied: Proxied, served: LocalServer) -> None:
    """Triton's and the supervisor's metrics have different paths; other networks may read neither."""
    assert b"nv_inference_request_success" in proxied.ask("/metrics")[2]
    assert b"polyhead_ready 1" in proxied.ask("/metrics/supervisor")[2]
    with Proxied(METRICS=served.url("metrics"), METRICS_FROM="10.0.0.0/8 192.168.0.1") as elsewhere:
        assert elsewhere.ask("/metrics")[0] == 403
        assert elsewhere.ask("/metrics/supervisor")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/v2",
        "/v2/models/gpt2_classifier",
        "/v2/models/gpt2_classifier/config",
        "/v2/models/gpt2_classifier/stats",
        "/v2/models/gpt2_classifier/generate",
        "/v2/models/gpt2_classifier/infer/../config",
        "/v2/repository/index",
        "/v2/repository/models/gpt2_classifier/load",
        "/v2/models/x/infer/../../../repository/models/gpt2_classifier/unload",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/logging",
        "/v2/trace/setting",
    ],
)
def test_nothing_else_is_reachable(proxied: Proxied, path: str) -> None:
    """Administration and metadata do not exist here, whatever key is sent."""
    for body in (None, b"{}"):
        status, _, answer = proxied.ask(path, body, polyhead_admin_key="x")
        assert (status, "nothing here" in json.loads(answer)["error"]) == (404, True)


@pytest.mark.parametrize("path", ["/json/v2/repository/index", "/binary/v2/repository/index", "/json" + INFER])
def test_inner_paths_are_not_reachable(proxied: Proxied, path: str) -> None:
    """The paths that the proxy uses internally cannot be requested."""
    assert proxied.ask(path, BODY)[0] == 404


def binary(text: bytes, parameters: str = "") -> tuple[bytes, str]:
    """A request with one binary text, and the length of its JSON."""
    size = len(text) + 4
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor], "outputs": [{"name": "TOKEN_COUNT"}]}).encode()
    header = header[:-1] + parameters.encode() + b"}"
    return header + len(text).to_bytes(4, "little") + text, str(len(header))


def test_bodies_are_capped_by_their_kind(proxied: Proxied) -> None:
    """JSON has a small cap, binary tensors a large one; a wrong header length does not get around it."""
    status, _, answer = proxied.ask(INFER, json.dumps(json_body(["x" * 300_000], ["SCORES"])).encode())
    assert status == 413
    assert "256k" in json.loads(answer)["error"]
    assert proxied.ask(INFER, json.dumps(json_body(["x" * 200_000], ["SCORES"])).encode())[0] == 200
    body, length = binary(b"word " * 200_000)
    assert proxied.ask(INFER, body, Inference_Header_Content_Length=length)[0] == 200
    for wrong in ("10000", "-1", "abc", "12 34", "0x10", f"{length}, 99999"):
        assert proxied.ask(INFER, body, Inference_Header_Content_Length=wrong)[0] == 400
    assert proxied.ask(INFER, b"x" * 18_000_000, Inference_Header_Content_Length=length)[0] == 413


def test_compressed_bodies_are_refused(proxied: Proxied) -> None:
    """Bodies that Triton would unpack behind the caps are refused."""
    bomb = gzip.compress(b"[" * 3_000_000)
    for encoding in ("gzip", "deflate", "identity, gzip"):
        assert proxied.ask(INFER, bomb, Content_Encoding=encoding)[0] == 415
    assert proxied.ask(INFER, BODY, Content_Encoding="identity")[0] == 200


def test_nested_json_ends_nothing(proxied: Proxied) -> None:
    """The deepest nesting within the caps is answered, in JSON bodies and in the JSON of binary ones."""
    half = 127_000
    frame = b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": %s}], "parameters": {"a": %s}}'
    nest = b"[" * half + b"]" * half
    for bomb in (b"[" * 2 * half, b'{"a":' * (2 * half // 5), frame % (nest, b"1"), frame % (b'["a"]', nest)):
        assert len(bomb) < 256 * 1024
        assert proxied.ask(INFER, bomb)[0] in (200, 400)
    body, length = binary(b"text", ', "parameters": {"a": %s}' % ("[" * 4900 + "]" * 4900))
    assert len(length) == 4
    assert proxied.ask(INFER, body, Inference_Header_Content_Length=length)[0] == 400
    too_deep = b"[" * 2_000_000
    assert proxied.ask(INFER, too_deep)[0] == 413
    assert proxied.ask(INFER, too_deep, Inference_Header_Content_Length="9999")[0] == 400


@pytest.mark.parametrize(
    "body",
    [b"{", b"null", b"[]", b"\xff", b'"text"', b'{"inputs": 1}', b'{"inputs": [1]}', b'{"inputs": [{}]}', b"{} {}",
     b'{"inputs": [], "parameters": 5}', b'{"inputs": [], "outputs": {}}', b'{"inputs": [], "id": "\\ud800"}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": "x", "data": ["a"]}]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1], "data": ["a"]}]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": "a"}]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [1]}]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [4294967296, 1], "data": ["a"]}]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "X", "shape": [1, 1], "data": ["a"]}]}',
     b'{"inputs": [{"name": 5, "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}], "outputs": [5]}',
     b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}], "parameters": {"a": NaN}}'],
)  # fmt: skip
def test_malformed_requests_get_400(proxied: Proxied, body: bytes) -> None:
    """Where Triton would say 500, the proxy says 400, in JSON."""
    status, _, answer = proxied.ask(INFER, body)
    assert (status, "error" in json.loads(answer)) == (400, True)


def test_failures_of_the_server_stay_500(served: LocalServer) -> None:
    """A good request that a broken server answers with 500 gets 500, also if the supervisor cannot be asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        place = f"127.0.0.1:{fake.server_address[1]}"
        try:
            for probe in (served.url("probe"), "127.0.0.1:9"):
                with Proxied(INFERENCE=place, PROBE=probe) as proxied:
                    status, _, answer = proxied.ask(INFER, BODY)
                    assert (status, "failed to answer" in json.loads(answer)["error"]) == (500, True)
        finally:
            fake.shutdown()
            thread.join()


def chunks(proxied: Proxied, body: bytes, count: int) -> int:
    """Sends a body over and over in chunks of one byte each; gives the status."""
    connection = proxied.connect()
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    connection.connect()
    one_by_one = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with contextlib.suppress(OSError):  # the proxy may answer and leave before the end
        connection.sock.sendall(head.encode() + one_by_one * count + b"0\r\n\r\n")
    response = http.client.HTTPResponse(connection.sock)
    try:
        response.begin()
        return response.status
    finally:
        response.close()
        connection.close()


def test_chunks_are_put_together(proxied: Proxied) -> None:
    """A body in chunks of one byte is answered like any other; with 300,000 of them it is too large."""
    assert chunks(proxied, BODY, 1) == 200
    assert chunks(proxied, b" " * 1000, 300) == 413


def test_a_slow_client_never_reaches_the_server(proxied: Proxied, served: LocalServer) -> None:
    """A client that stops in the middle of a body is disconnected after the timeout; others are answered meanwhile."""
    connection = proxied.connect()
    connection.putrequest("POST", INFER)
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Length", str(len(BODY)))
    connection.endheaders(BODY[:10])
    assert proxied.ask(INFER, BODY)[0] == 200
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        connection.getresponse()
    assert time.monotonic() - began < 5
    connection.close()


def test_rate_is_limited_by_key(served: LocalServer) -> None:
    """Requests beyond rate and burst get 429 with Retry-After."""
    with Proxied(INFERENCE=served.url("http"), RATE="1r/s", BURST="2") as limited:
        found = [limited.ask(INFER, BODY)[:2] for _ in range(5)]
    assert [status for status, _ in found] == [200, 200, 200, 429, 429]
    assert found[-1][1]["Retry-After"] in {"1", "2", "3"}


class Broken(BaseHTTPRequestHandler):
    """Answers 500, like Triton with a dead model process."""

    status, delay_s = 500, 0.0

    def do_POST(self) -> None:
        """One request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.delay_s)
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


class Overloaded(Broken):
    """Answers 503 after half a second, like Triton when a request has waited too long."""

    status, delay_s = 503, 0.5


@pytest.mark.parametrize("bound", ["CONNECTIONS", "TOTAL"])
def test_refusals_for_load_have_retry_after(bound: str) -> None:
    """503 of an overloaded server or of no server, and 429 beyond a bound have Retry-After, and the proxy says why."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Overloaded) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        with Proxied(INFERENCE=f"127.0.0.1:{fake.server_address[1]}", **{bound: "2"}) as proxied:
            found: list[tuple[int, str | None, bytes]] = []

            def ask() -> None:
                status, headers, body = proxied.ask(INFER, BODY)
                found.append((status, headers["Retry-After"], body))

            callers = [threading.Thread(target=ask) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            fake.shutdown()
            thread.join()
            fake.server_close()
            ask()
    assert {after for _, after, _ in found} <= {"1", "2", "3"}
    reasons = Counter((status, json.loads(body).get("error", "the server's own")) for status, _, body in found)
    assert reasons == {
        (429, "too many requests at once; try again later"): 2,
        (503, "no server can answer now; try again later"): 1,
        (503, "the server's own"): 2,
    }


def test_plain_http_is_refused(proxied: Proxied) -> None:
    """Nothing is answered without TLS."""
    with socket.create_connection(("127.0.0.1", proxied.port)) as plain:
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plain.recv(100).startswith(b"HTTP/1.1 400")


def test_a_dead_model_process_costs_a_patient_client_nothing(repository: Path) -> None:
    """Until the server is restarted, requests get 503 with Retry-After, never 500, so the SDK gets its answer."""
    with (
        LocalServer(repository, environment=ONE_THREAD) as served,
        Proxied(INFERENCE=served.url("http"), PROBE=served.url("probe"), RATE="1000r/s") as proxied,
    ):
        stop, found = threading.Event(), set()

        def ask() -> None:
            while not stop.is_set():
                found.add(proxied.ask(INFER, BODY)[0])
                time.sleep(0.02)

        retry = RetryPolicy(max_attempts=20, base_s=0.5, budget=1.0)
        client = Client(
            f"https://localhost:{proxied.port}", api_key=KEY, tls=Tls(ca_file=proxied.certificate), retry=retry
        )
        with client:
            before = client.classify(TEXTS[:3])
            asking = threading.Thread(target=ask)
            asking.start()
            os.kill(model_processes(served)[0], signal.SIGKILL)
            assert client.classify(TEXTS[:3], timeout_s=60) == before
            stop.set()
            asking.join(30)
    assert found <= {200, 503}
    assert 503 in found
