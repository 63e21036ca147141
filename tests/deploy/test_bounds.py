"""What all callers together can take: memory, disk and shared memory, added up from the template and the manifests.

The sizes of one connection and one request are measured by the tests at the end.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, containers, environment, kustomized, only
from tests.e2e.plain_json import json_body
from tests.e2e.proxied import KEY, Proxied
from tests.e2e.upstream import Upstream, prediction, upstream

KIB, MIB, GIB = 2**10, 2**20, 2**30
UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "Ki": KIB, "Mi": MIB, "Gi": GIB}

PROCESS = 14 * MIB  # nginx with njs, without connections
CONNECTION = 48 * KIB  # a handshake, or headers as long as they may be
SOCKET = 2 * 2  # the kernel takes twice what listen's rcvbuf and sndbuf say, for each of them
LIGHT = 400 * KIB  # a request of less than 10,000 bytes, whatever it contains
HEAVY = 1280 * KIB  # what JSON takes besides its body
LARGE = 256 * KIB  # a body on disk: the buffers that write, read and send it
CHUNKED = 2  # a body in chunks, and nginx's records of the chunks
PLAIN = 2560 * KIB  # a request to /v1 without its answer
COPIES = 4  # of the answer
SHARED = 2  # copies of a body in Triton's shared memory; 1.1 were measured


def size(text: str) -> int:
    """Bytes of nginx's or Kubernetes' sizes."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


@pytest.fixture(params=["kubernetes", "kserve"])
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The spec of a pod."""
    resources = kustomized(DEPLOY / request.param)
    if request.param == "kserve":
        return dict(only(resources, "ServingRuntime")["spec"])
    return dict(only(resources, "Deployment")["spec"]["template"]["spec"])


@pytest.fixture
def nginx(pod: dict[str, Any]) -> dict[str, Any]:
    """Its proxy."""
    (found,) = (container for container in containers(pod) if container["name"] == "nginx")
    return dict(found)


@pytest.fixture
def config(nginx: dict[str, Any], tmp_path: Path) -> str:
    """The configuration that the pod renders."""
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_text(f"tests {KEY}\n", encoding="utf-8")
    places = {"KEYS_FILE": str(tmp_path / "keys"), "RUN": str(tmp_path / "run")}
    variables = {**os.environ, **environment(nginx), **places}
    render = [str(DEPLOY / "nginx" / "render")]
    return subprocess.run(render, env=variables, capture_output=True, check=True, text=True).stdout


def values(config: str, directive: str) -> list[str]:
    """All values of a directive, in the order of the file."""
    return re.findall(rf"^\s*{directive} ([^;]*);", config, flags=re.MULTILINE)


def one(config: str, directive: str) -> str:
    """The value of a directive that stands there once."""
    (found,) = values(config, directive)
    return str(found)


def one_buffer(config: str) -> str:
    """The size of the kernel's buffer for each direction of a connection."""
    (received, sent) = re.findall(r"(?:rcv|snd)buf=(\w+)", one(config, "listen"))
    assert received == sent
    return str(sent)


def at_once(config: str) -> dict[str, int]:
    """How many requests each zone of limit_conn lets in."""
    found = dict(value.split() for value in values(config, "limit_conn"))
    return {zone: int(count) for zone, count in found.items()}


def location(config: str, path: str) -> str:
    """The text of a location."""
    (found,) = re.findall(rf"^    location {re.escape(path)} {{\n(.*?)^    }}", config, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def volume(pod: dict[str, Any], container: dict[str, Any], path: str) -> int:
    """The size of what is mounted there."""
    (name,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == path)
    (found,) = (each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == name)
    return size(found)


def test_nginx_fits_its_memory(nginx: dict[str, Any], config: str) -> None:
    """Processes, zones, connections, bodies and answers add up to less than the container may use."""
    workers = int(one(config, "worker_processes"))
    most = at_once(config)
    json_body = size(one(location(config, "/json/"), "client_max_body_size"))
    assert one(location(config, "= /v1/classify"), "client_max_body_size") == one(
        location(config, "/json/"), "client_max_body_size"
    )
    answer = size(one(config, "subrequest_output_buffer_size"))
    zones = re.findall(r"(?:zone=\w+:|zone \w+ |shared:\w+:)(\d+[km])", config)
    assert len(zones) > 12
    parts = {
        "processes": (workers + 1) * PROCESS,
        "zones": sum(map(size, zones)),
        "connections": workers * int(one(config, "worker_connections")) * CONNECTION,
        "the kernel's buffers": most["of_all"] * SOCKET * size(one_buffer(config)),
        "requests": most["of_all"] * LIGHT,
        "JSON": most["heavy_of_all"] * (json_body + HEAVY),
        "large and chunked bodies": most["large_of_all"] * (LARGE + CHUNKED * json_body),
        "/v1": most["plain_of_all"] * (PLAIN + COPIES * answer),
    }
    limit = size(nginx["resources"]["limits"]["memory"])
    assert sum(parts.values()) < limit, {name: part // MIB for name, part in parts.items()}
    assert nginx["resources"]["requests"]["memory"] == nginx["resources"]["limits"]["memory"]


def test_every_request_is_counted(config: str) -> None:
    """A kind of request that no total bounds would make the sum wrong."""
    most = at_once(config)
    assert most["of_all"] >= most["heavy_of_all"] >= most["heavy_of_client"]
    for kind in ("heavy", "large", "plain"):
        assert most[f"{kind}_of_all"] >= 2 * most[f"{kind}_of_client"], "one key could take all"
    assert most["of_all"] >= 2 * most["of_client"]
    for place in ("/binary/", "/large/", "/json/", "= /v1/classify"):
        assert values(location(config, place), "client_max_body_size")
    assert size(one(location(config, "/binary/"), "client_body_buffer_size")) <= HEAVY
    assert size(one(location(config, "/large/"), "client_body_buffer_size")) <= LARGE
    header, *_ = values(config, "large_client_header_buffers")
    count, each = header.split()
    assert int(count) * size(each) + size(one(config, "client_header_buffer_size")) < CONNECTION


def test_connections_have_files(config: str) -> None:
    """A process may open a file for each connection, and for each body and answer that waits on disk."""
    files = int(one(config, "worker_connections")) + at_once(config)["of_all"] + at_once(config)["large_of_all"]
    assert int(one(config, "worker_rlimit_nofile")) > files


def test_bodies_and_answers_fit_the_disk(pod: dict[str, Any], nginx: dict[str, Any], config: str) -> None:
    """Large bodies and the answers of slow readers fit into the volume of /tmp."""
    most = at_once(config)
    bodies = most["large_of_all"] * size(one(location(config, "/large/"), "client_max_body_size"))
    answers = most["of_all"] * size(one(config, "proxy_max_temp_file_size"))
    assert bodies + answers < volume(pod, nginx, "/tmp")


def test_requests_fit_shared_memory(pod: dict[str, Any], config: str) -> None:
    """What reaches one server at once fits into its /dev/shm, also if every body is as large as it may be."""
    (server, *_) = (each for each in containers(pod) if each["name"] not in ("model", "nginx"))
    most = at_once(config)
    (large,) = {int(found) for found in re.findall(r" max_conns=(\d+)", config)}
    bodies = large * size(one(location(config, "/large/"), "client_max_body_size"))
    bodies += most["heavy_of_all"] * size(one(location(config, "/json/"), "client_max_body_size"))
    bodies += most["of_all"] * 10_000
    assert SHARED * bodies < volume(pod, server, "/dev/shm")


def begin_handshake(proxied: Proxied) -> socket.socket:
    """Five bytes, which are no whole handshake."""
    opened = socket.create_connection(("127.0.0.1", proxied.port))
    opened.sendall(b"\x16\x03\x01\x02\x00")
    return opened


def begin_headers(proxied: Proxied) -> socket.socket:
    """Headers as long as they may be, without their end."""
    opened = proxied.trust.wrap_socket(
        socket.create_connection(("127.0.0.1", proxied.port)), server_hostname="localhost"
    )
    opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 7900 + b"\r\nB: " + b"x" * 7900)
    return opened


def ask(path: str, request: dict[str, Any], trickle: bool = False) -> Callable[[Proxied], socket.socket]:
    """A whole request, whose answer nobody reads."""
    body = json.dumps(request, separators=(",", ":")).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"

    def send(proxied: Proxied) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", proxied.port))
        if trickle:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened = proxied.trust.wrap_socket(plain, server_hostname="localhost")
        opened.sendall(head.encode() + body)
        return opened

    return send


def infer(**more: Any) -> Callable[[Proxied], socket.socket]:
    """An inference request with something more."""
    return ask("/v2/models/m/infer", json_body(["Rain."], ["SCORES"]) | more)


WORST: dict[str, tuple[Callable[[Proxied], socket.socket], int]] = {
    "a handshake": (begin_handshake, CONNECTION),
    "headers": (begin_headers, CONNECTION),
    "a small request of objects": (infer(more=[{"a": 1}] * 980), LIGHT),
    "a small request of names": (infer(more={f"{number:x}": 1 for number in range(1000)}), LIGHT),
    "a long text": (infer(more="x" * 250_000), HEAVY + 256 * KIB),
    "long names": (infer(more={f"{number:098}": 1 for number in range(2400)}), HEAVY + 256 * KIB),
    "fields": (ask("/v1/classify", {"texts": [{f"a{n}": "\\" * 80 for n in range(35)}] * 60}), PLAIN),
    "escapes in fields": (ask("/v1/classify", {"texts": [{"a": "\\" * 2000}] * 60}), PLAIN),
}


def growth(proxied: Proxied, make: Callable[[Proxied], socket.socket], count: int) -> float:
    """By how many bytes nginx grows for each of so many."""
    proxied.ask("/v2/models/m/infer", json.dumps(json_body(["Rain."], ["SCORES"])).encode())
    proxied.ask("/v1/classify", b'{"texts": ["Rain."]}')
    before = proxied.resident
    opened = [make(proxied) for _ in range(count)]
    time.sleep(1)
    grown = proxied.resident - before
    for each in opened:
        each.close()
    return grown / count


@pytest.mark.parametrize(("make", "most"), WORST.values(), ids=WORST)
def test_one_takes_no_more_than_the_sums_say(make: Callable[[Proxied], socket.socket], most: int) -> None:
    """While they wait, the worst requests and connections that are known take less than the sums have for them."""
    with upstream() as server, Proxied(INFERENCE=server.place, WORKERS="1") as proxied:
        proxied.ask("/ready")
        server.go.set()
        grown = growth(proxied, hold(server, make), 30)
    assert grown < most


def hold(server: Upstream, make: Callable[[Proxied], socket.socket]) -> Callable[[Proxied], socket.socket]:
    """The same, but the server does not answer."""

    def send(proxied: Proxied) -> socket.socket:
        server.go.clear()
        return make(proxied)

    return send


def test_an_answer_takes_no_more_than_the_sums_say() -> None:
    """Answers of /v1 that nobody reads take less than the sums have for them."""
    text = b'{"x": "%b"}' % (b"y" * 990_000)
    with upstream(prediction(text)) as server, Proxied(INFERENCE=server.place, WORKERS="1") as proxied:
        grown = growth(proxied, ask("/v1/classify", {"texts": ["Rain."]}, trickle=True), 20)
    assert grown < PLAIN + COPIES * 1_000_000
