"""What reaches Triton through the proxy: one kind of path, bodies whose length has one reading, and known headers."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator

import pytest

from tests.e2e.plain_json import json_body
from tests.e2e.proxied import KEY, Proxied
from tests.e2e.upstream import Upstream, upstream

INFER = "/v2/models/gpt2_classifier/infer"
GOOD = json.dumps(json_body(["Rain.", "Snow."], ["SCORES"])).encode()
TEXTS = b"".join(struct.pack("<I", len(text)) + text for text in (b"Rain.", b"Snow."))
BINARY = GOOD.replace(b'"data": ["Rain.", "Snow."]', b'"parameters": {"binary_data_size": %d}' % len(TEXTS))


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """A fake server, which notes what reaches it."""
    with upstream() as server:
        yield server


@pytest.fixture(scope="module")
def noted(behind: Upstream) -> Iterator[Proxied]:
    """A proxy before it."""
    with Proxied(INFERENCE=behind.place, CLIENT_TIMEOUT="2s") as running:
        yield running


def send(proxied: Proxied, head: str, body: bytes) -> bytes:
    """Everything that the proxy answers to these bytes, until it closes the connection."""
    connection = proxied.connect()
    connection.connect()
    with connection.sock as opened:
        opened.sendall(f"{head}\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode() + body)
        answered = b""
        while received := opened.recv(65536):
            answered += received
    return answered


MODEL = "/v2/models/m"
PATHS = (
    "//v2/models/m/infer", "/v2//models/m//infer", "/v2/./models/m/infer", "/x/../v2/models/m/infer", f"{MODEL}/infer/",
    f"{MODEL}/infer?x=1", f"{MODEL}/infer?/../config", f"{MODEL}/infer#x", f"{MODEL}/infer;x", f"{MODEL};x/infer",
    "/v2/models/%6d/infer", "/%76%32/models/m/infer", f"{MODEL}%2Finfer", f"{MODEL}/%69nfer", f"{MODEL}%00/infer",
    f"{MODEL}%20x/infer", f"{MODEL}%0d%0ax/infer", f"{MODEL}%3Fx/infer", "/v2/models/../repository/index/infer",
    "/v2/models/%2e%2e/infer", "/v2/models/%2e%2e%2finfer", "/V2/MODELS/m/INFER", "/v2/models/./infer",
    f"{MODEL}/versions/1/infer", f"{MODEL}/versions/01/infer", f"{MODEL}/versions/0/infer",
    f"{MODEL}/versions/-1/infer",
    f"{MODEL}/versions/99999999999999999999/infer", f"{MODEL}/versions/1e3/infer", f"{MODEL}/versions/infer",
    "/v2/models//infer", f"{MODEL * 30}/infer", "/v2/models/" + "m" * 300 + "/infer", "http://x/v2/models/m/infer",
    "http://x/v2/repository/index", "/v2/models/\u00e9/infer", f"{MODEL}\\..\\x/infer", f"{MODEL}/infer%23/x",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_only_one_kind_of_path_reaches_triton(noted: Proxied, behind: Upstream, path: str) -> None:
    """However an address is spelled, Triton sees an infer path in its plain form, without a query, or nothing."""
    before = len(behind.paths)
    head = f"POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(GOOD)}"
    status = int(send(noted, head, b"\r\n" + GOOD).split()[1])
    assert status in (200, 400, 404)
    assert len(behind.paths) - before == (status == 200)
    for reached in behind.paths[before:]:
        assert re.fullmatch(r"/v2/models/[A-Za-z0-9_.-]{1,255}(/versions/[1-9][0-9]{0,17})?/infer", reached)
        assert "/../" not in reached


OPEN = ("/ready", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/3/ready",
        "/metrics", "/metrics/supervisor")  # fmt: skip
SPELLED = (
    "{}?x=1",
    "{}?/../config",
    "//x/..{}",
    "/v2/repository/index/../../..{}",
    "/v2/models/m%2fconfig%2f..%2f..%2f..%2f..{}",
    "/v2/models/..%2f..{}",
    "{}%0a",
    "{}%0A%0a",
    "{}#/x",
    "{};x",
    "{}/",
    "http://x{}",
    "/.{}",
    "{}%00",
    "{}/.",
    "{}/x/..",
)


@pytest.mark.parametrize("spelled", SPELLED)
def test_open_paths_go_on_in_their_plain_form(spelled: str) -> None:
    """Probes and metrics need no key, so the servers behind must not see any other way to write their addresses."""
    with upstream() as server, Proxied(INFERENCE=server.place, PROBE=server.place, METRICS=server.place) as proxied:
        for path in OPEN:
            head = f"GET {spelled.format(path)} HTTP/1.1\r\nConnection: close"
            assert int(send(proxied, head, b"\r\n").split()[1]) in (200, 400, 404)
        assert set(server.paths) <= {*OPEN}


CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
LENGTH = b"Content-Length: %d" % len(GOOD)
WITH_BINARY = b"Content-Length: %d\r\n" % len(BINARY + TEXTS)
JSON_LENGTH = b"Inference-Header-Content-Length: %d"
RIGHT = len(BINARY)
FRAMED: dict[str, tuple[bytes, bytes]] = {
    "a length twice": (LENGTH + b"\r\n" + LENGTH, GOOD),
    "two lengths": (LENGTH + b"\r\nContent-Length: 5", GOOD),
    "two lengths in one": (LENGTH + b", %d" % len(GOOD), GOOD),
    "a length and chunks": (LENGTH + b"\r\nTransfer-Encoding: chunked", CHUNKS),
    "chunks and a length": (b"Transfer-Encoding: chunked\r\nContent-Length: 5", CHUNKS),
    "chunks twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", CHUNKS),
    "an unknown encoding": (b"Transfer-Encoding: xchunked", CHUNKS),
    "chunked and gzip": (b"Transfer-Encoding: chunked, gzip", CHUNKS),
    "a space before the colon": (b"Content-Length : %d" % len(GOOD), GOOD),
    "a length with a sign": (b"Content-Length: +%d" % len(GOOD), GOOD),
    "a length in hexadecimal": (b"Content-Length: 0x10", GOOD),
    "a huge length": (b"Content-Length: 99999999999999999999", GOOD),
    "chunks of a huge size": (b"Transfer-Encoding: chunked", b"fffffffffffffffff\r\n" + GOOD),
    "chunks of a negative size": (b"Transfer-Encoding: chunked", b"-1\r\n" + GOOD),
    "JSON's length twice": (
        WITH_BINARY + JSON_LENGTH % 5 + b"\r\n" + JSON_LENGTH % RIGHT,
        BINARY + TEXTS,
    ),
    "JSON's length with underscores": (
        WITH_BINARY + (JSON_LENGTH % RIGHT).replace(b"-", b"_"),
        BINARY + TEXTS,
    ),
    **{
        f"JSON's length is {said}": (WITH_BINARY + (JSON_LENGTH % 0)[:-1] + said.encode(), BINARY + TEXTS)
        for said in ("0", f"+{RIGHT}", "-1", f"{RIGHT}.0", "1e3", "9999", f"{RIGHT - 1}", f"{RIGHT + 1}", "0x10",
                     f"{RIGHT},{RIGHT}", f"00{RIGHT}", f"{RIGHT} 1", "x")
    },
}  # fmt: skip


@pytest.mark.parametrize(("headers", "body"), FRAMED.values(), ids=FRAMED)
def test_lengths_that_two_readers_may_read_differently_are_refused(
    noted: Proxied, behind: Upstream, headers: bytes, body: bytes
) -> None:
    """Nothing reaches Triton, and what follows the body is no second request."""
    before = len(behind.paths)
    smuggled = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n\r\n"
    answered = send(noted, f"POST {INFER} HTTP/1.1\r\nConnection: close", headers + b"\r\n\r\n" + body + smuggled)
    assert re.match(rb"HTTP/1.1 (4..|501) ", answered), answered
    assert behind.paths[before:] == []
    assert answered.count(b"HTTP/1.1 ") == 1


def test_a_length_with_zeros_is_the_same_length(noted: Proxied, behind: Upstream) -> None:
    """Both readers take leading zeros as decimal; Triton gets the header and the body as they came."""
    said = f"{RIGHT:04}"
    assert noted.ask(INFER, BINARY + TEXTS, Inference_Header_Content_Length=said)[0] == 200
    assert behind.bodies[-1] == BINARY + TEXTS
    assert behind.headers[-1]["Inference-Header-Content-Length"] == said


def test_triton_gets_no_other_header(noted: Proxied, behind: Upstream) -> None:
    """Of the client's headers only those that Triton needs go on; keys and everything unknown stay here."""
    sent = {"Polyhead-Admin-Key": "x", "Cookie": "x", "Endpoint-Load-Metrics-Format": "json", "Traceparent": "x",
            "X-Forwarded-For": "x", "Accept-Encoding": "gzip", "Expect": "x", "Content-Encoding": "identity",
            "TE": "trailers", "Upgrade": "h2c", "Triton-Admin": "x", "Content-Type": "application/json"}  # fmt: skip
    assert noted.ask(INFER, GOOD, **sent)[0] == 200
    assert behind.headers[-1].keys() <= {"Host", "X-Request-Id", "Content-Type", "Content-Length"}
    assert behind.bodies[-1] == GOOD
