"""One caller against all others: what the proxy limits, for those with a key and for those without."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.local_server import ROOT
from tests.e2e.plain_json import json_body
from tests.e2e.processes import descendants
from tests.e2e.proxied import KEY, OTHER_KEY, Proxied
from tests.e2e.upstream import Upstream, prediction, upstream

INFER, CLASSIFY = "/v2/models/gpt2_classifier/infer", "/v1/classify"
BODY = json.dumps(json_body(["Rain."], ["SCORES"])).encode()
PAGE = "https://app.example.com"
MIB = 2**20


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """A server that answers at once."""
    with upstream() as server:
        yield server


@pytest.fixture
def proxied(behind: Upstream) -> Iterator[Proxied]:
    """A proxy before it, whose limits nobody has used yet."""
    with Proxied(INFERENCE=behind.place, PROBE=behind.place, METRICS=behind.place, ORIGINS=PAGE) as running:
        yield running


def large_body(texts: int = 1, size: int = 150_000) -> tuple[bytes, dict[str, str]]:
    """A request with binary texts, and its headers."""
    data = (struct.pack("<I", size) + b"x" * size) * texts
    described = {
        "name": "TEXT",
        "datatype": "BYTES",
        "shape": [texts, 1],
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [described]}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def statuses(proxied: Proxied, count: int, path: str, method: str, key: str | None, **headers: str) -> Counter[int]:
    """How many of so many requests over one connection got which status."""
    found: Counter[int] = Counter()
    connection = proxied.connect()
    sent = headers if key is None else headers | {"Authorization": f"Bearer {key}"}
    for _ in range(count):
        connection.request(method, path, headers=sent)
        with connection.getresponse() as response:
            response.read()
            found[response.status] += 1
    connection.close()
    return found


@pytest.mark.parametrize(
    ("method", "path", "key", "allowed"),
    [
        ("POST", INFER, None, 401),
        ("POST", INFER, "a-key.that-is~wrong", 401),
        ("GET", CLASSIFY, None, 401),
        ("DELETE", "/v1/openapi.json", None, 401),
        ("GET", "/v1/openapi.json", None, 200),
        ("GET", "/", None, 401),
        ("GET", "/gate/stranger", None, 401),
        ("GET", "/ready%0a", None, 401),
        ("GET", "/metrics%0a", None, 401),
        ("GET", "/v2/models/m/versions/0/ready", None, 404),
        ("GET", "/v2/models/" + "m" * 300 + "/ready", None, 404),
        ("GET", "/error/bad", None, 401),
        ("OPTIONS", CLASSIFY, None, 204),
        ("GET", "/metrics", None, 200),
    ],
)
def test_requests_without_a_key_have_a_rate(
    proxied: Proxied, behind: Upstream, method: str, path: str, key: str | None, allowed: int
) -> None:
    """A flood without a key gets 429, is not logged, reaches no server, and costs a caller with a key nothing."""
    before = len(behind.paths)
    headers = {"Origin": PAGE} if method == "OPTIONS" else {}
    found = statuses(proxied, 150, path, method, key, **headers)
    assert found.keys() == {allowed, 429}
    assert 40 <= found[allowed] <= 90  # the allowance, and what a slow second adds
    assert path == "/metrics" or len(behind.paths) == before
    assert proxied.ask(INFER, BODY)[0] == 200
    time.sleep(0.2)
    logged = [json.loads(line) for line in (proxied.folder / "access.log").read_text(encoding="utf-8").splitlines()]
    assert len(logged) == found[allowed] + 1


def hold_requests(proxied: Proxied, key: str, count: int) -> list[http.client.HTTPSConnection]:
    """Requests that nobody answers yet."""
    held = []
    for _ in range(count):
        held.append(proxied.connect())
        held[-1].request("POST", INFER, BODY, {"Authorization": f"Bearer {key}"})
    return held


def test_callers_of_one_gateway_have_limits_of_their_own() -> None:
    """Behind a gateway all callers have its address. If one key uses up its connections, the next one has its own."""
    with upstream() as server, Proxied(INFERENCE=server.place, CONNECTIONS="5", TOTAL="100") as proxied:
        server.go.clear()
        held = hold_requests(proxied, KEY, 5)
        deadline = time.monotonic() + 20
        while server.busy < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert proxied.ask(INFER, BODY)[0] == 429
        held += hold_requests(proxied, OTHER_KEY, 1)
        while server.busy < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.busy == 6
        server.go.set()
        assert [connection.getresponse().status for connection in held] == [200] * 6
        for connection in held:
            connection.close()


def test_metrics_are_not_passed_on_by_a_gateway(proxied: Proxied) -> None:
    """A gateway's address is one of METRICS_FROM in a cluster; what it passes on is told by the header that it adds."""
    for path in ("/metrics", "/metrics/supervisor"):
        assert proxied.ask(path)[0] == 200
        for name in ("X_Forwarded_For", "Forwarded", "x_forwarded_for"):
            assert proxied.ask(path, **{name: "for=192.0.2.1"})[0] == 403
    assert 429 in statuses(proxied, 150, "/metrics", "GET", None, **{"X-Forwarded-For": "192.0.2.1"})


def test_a_low_soft_limit_of_files_is_not_the_limit_of_connections(behind: Upstream) -> None:
    """nginx raises it; else a few hundred connections would keep everyone out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        started = Proxied(INFERENCE=behind.place, WORKERS="1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with started as proxied:
        assert proxied.ask(INFER, BODY)[0] == 200
        for worker in descendants(proxied.process.pid):
            limits = Path(f"/proc/{worker}/limits").read_text(encoding="ascii")
            (files,) = re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE)
            assert int(files) == 2 * 3072


@pytest.mark.parametrize("path", ["/ready", "/v2/health/ready", "/v2/health/live", "/v2/models/m/ready"])
def test_probes_have_a_rate_of_their_own(proxied: Proxied, path: str) -> None:
    """Ten load balancers that ask five times a second stay far below it; a flood from one address gets 429."""
    statuses(proxied, 100, "/", "GET", None)  # another flood from the same address does not matter
    assert statuses(proxied, 50, path, "GET", None) == {200: 50}
    found = statuses(proxied, 400, path, "GET", None)
    assert found.keys() == {200, 429}
    assert found[200] < 250


def begin(proxied: Proxied, body: bytes, headers: dict[str, str], length: int) -> http.client.HTTPSConnection:
    """A connection that has sent the beginning of a body."""
    connection = proxied.connect()
    connection.putrequest("POST", INFER)
    for name, value in ({"Authorization": f"Bearer {KEY}", "Content-Length": str(length)} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    with contextlib.suppress(OSError):  # the proxy may refuse it and leave
        connection.send(body)
    return connection


def bodies(proxied: Proxied) -> list[Path]:
    """The files of the bodies that are under way."""
    return [file for file in (proxied.folder / "run" / "body").rglob("*") if file.is_file()]


def size_of(file: Path) -> int:
    """Its size; 0 if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def test_unfinished_bodies_of_one_key_take_little(proxied: Proxied) -> None:
    """Of 40 half-sent bodies of 17 MB, eight may go on, on disk; the key's small requests are answered meanwhile."""
    statuses(proxied, 20, "/ready", "GET", None)
    before = proxied.resident
    body, headers = large_body(texts=1, size=2 * MIB)
    half = [begin(proxied, body, headers, 17 * MIB) for _ in range(40)]
    deadline = time.monotonic() + 20
    files: list[Path] = []
    while sum(map(size_of, files)) < 8 * 2 * MIB - 8 * 65536 and time.monotonic() < deadline:
        files = bodies(proxied)
        time.sleep(0.1)
    assert len(files) == 8
    assert proxied.resident - before < 20 * MIB
    assert proxied.ask(INFER, BODY)[0] == 200
    for connection in half:
        connection.close()
    while any(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(file.exists() for file in files)


def test_few_large_bodies_are_in_a_server_at_once(behind: Upstream, proxied: Proxied) -> None:
    """/dev/shm has room for LARGE_AT_ONCE of them; others are told to try again, and small ones get through."""
    body, headers = large_body()
    assert proxied.ask(INFER, body, **headers)[0] == 200
    assert behind.bodies[-1] == body
    with upstream() as slow, Proxied(INFERENCE=slow.place, LARGE_AT_ONCE="2") as limited:
        slow.go.clear()
        found: list[tuple[int, str | None]] = []

        def ask() -> None:
            status, answered, _ = limited.ask(INFER, body, **headers)
            found.append((status, answered["Retry-After"]))

        callers = [threading.Thread(target=ask) for _ in range(6)]
        for caller in callers:
            caller.start()
        deadline = time.monotonic() + 20
        while len(found) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert slow.busiest == 2
        small = threading.Thread(target=ask_small, args=(limited,))
        small.start()
        while slow.busiest < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert slow.busiest == 3
        slow.go.set()
        for caller in (*callers, small):
            caller.join()
    assert sorted(status for status, _ in found) == [200, 200, 503, 503, 503, 503]
    assert {after for status, after in found if status == 503} <= {"1", "2", "3"}


def ask_small(proxied: Proxied) -> None:
    """A small request, which must be answered."""
    assert proxied.ask(INFER, BODY)[0] == 200


@pytest.mark.parametrize("texts", [1, 64])
def test_large_bodies_are_checked_too(behind: Upstream, proxied: Proxied, texts: int) -> None:
    """A body that is in a file passes unchanged if it is right, and is refused with a reason if a text lies."""
    body, headers = large_body(texts=texts, size=200_000 // texts)
    assert proxied.ask(INFER, body, **headers)[0] == 200
    assert behind.bodies[-1] == body
    for wrong in (body[:-1] + b"xx", body[:-1], body[:-9] + b"\xff" * 9 + b"x"):
        before = len(behind.bodies)
        status, _, said = proxied.ask(INFER, wrong, **headers)
        assert (status, "error" in json.loads(said)) == (400, True)
        assert len(behind.bodies) == before
    at = int(headers["Inference-Header-Content-Length"])
    status, _, said = proxied.ask(INFER, body[:at] + b"\xff\xff\xff\xff" + body[at + 4 :], **headers)
    assert status == 400
    assert "shorter than its length" in json.loads(said)["error"]


@pytest.mark.parametrize("head", ["", "Inference-Header-Content-Length: 100\r\n"])
def test_chunks_of_one_byte_take_little(proxied: Proxied, head: str) -> None:
    """nginx keeps a record of 100 bytes per chunk; of such bodies, only a few may come at once."""
    before = proxied.resident
    opened = []
    for _ in range(12):
        connection = proxied.connect()
        connection.connect()
        start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{head}"
        with contextlib.suppress(OSError):
            connection.sock.sendall(f"{start}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\nx\r\n" * 40_000)
        opened.append(connection)
    time.sleep(0.5)
    assert proxied.resident - before < 8 * 6 * MIB
    assert proxied.ask(INFER, BODY)[0] == 200
    for connection in opened:
        connection.close()


def test_a_plain_answer_has_a_cap() -> None:
    """An answer that would fill the proxy's memory is 400 with what to ask instead; one below the cap passes."""
    for size, expected in ((500_000, 200), (1_100_000, 400), (8_000_000, 400)):
        with upstream(prediction(b'{"x": "%b"}' % (b"y" * size))) as server, Proxied(INFERENCE=server.place) as proxied:
            status, _, said = proxied.ask(CLASSIFY, b'{"texts": ["Rain."]}')
            assert status == expected, said[:200]
            assert status == 200 or "top_k" in json.loads(said)["error"]
            assert proxied.ask(CLASSIFY, b'{"texts": ["Rain."]}')[0] == expected


def test_slow_readers_keep_no_answer_in_memory() -> None:
    """Answers of 8 MB that nobody reads wait on disk, up to ANSWER_FILE each."""
    places: dict[str, str] = {"ANSWER_FILE": "1m", "WORKERS": "1"}
    with upstream(b"x" * (8 * MIB)) as server, Proxied(INFERENCE=server.place, **places) as proxied:
        statuses(proxied, 20, "/ready", "GET", None)
        before = proxied.resident
        waiting = []
        for _ in range(40):
            connection = proxied.connect()
            connection.connect()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.request("POST", INFER, BODY, {"Authorization": f"Bearer {KEY}"})
            waiting.append(connection)
        time.sleep(1)
        assert proxied.resident - before < 30 * MIB
        for connection in waiting:
            connection.close()


def test_a_line_of_the_log_is_short(proxied: Proxied) -> None:
    """Neither a long address, nor its query, nor a long method gets into the log; a key in a query least of all."""
    for method, path in (
        ("GET", "/" + "x" * 7000), ("GET", "/?key=" + KEY), ("X" * 7000, "/"), ("GET", "/" + "%01" * 2000),
        ("GET", "/" + '"' * 7000),
    ):  # fmt: skip
        proxied.ask(path, method=method)
        proxied.ask(path, method=method, key=None)
    time.sleep(0.2)
    text = (proxied.folder / "access.log").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) < 2000
    assert KEY not in text
    for line in text.splitlines():
        json.loads(line)


def test_an_ipv6_caller_has_one_network() -> None:
    """The addresses of a /64 share their limits; the template's expression finds the network of each."""
    template = (ROOT / "deploy" / "nginx" / "nginx.conf.template").read_text(encoding="utf-8")
    (expression,) = re.findall(r'"~(\^\(\?<polyhead_prefix>.*)" \$polyhead_prefix;', template)
    found = re.compile(expression.replace("?<", "?P<"))
    for one, other, same in (
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:aaaa::1", True), ("2001:db8:1:2::", "2001:db8:1:2::1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False), ("2001:db8::1", "2001:db8::2", True),
    ):  # fmt: skip
        prefixes = [match["polyhead_prefix"] for match in map(found.match, (one, other)) if match]
        assert len(prefixes) == 2
        assert (prefixes[0] == prefixes[1]) == same
    assert not found.match("10.0.0.1")
    assert not found.match("::1")
