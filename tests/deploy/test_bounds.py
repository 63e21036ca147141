"""What all callers together can take: memory, disk and shared memory, added up from the template and the manifests.

The sizes of one connection and one request are measured by the tests at the end.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, containers, environment, kustomized, only
from tests.e2e.proxied import KEY

KIB, MIB, GIB = 2**10, 2**20, 2**30
UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "Ki": KIB, "Mi": MIB, "Gi": GIB}

PROCESS = 14 * MIB  # nginx with njs, without connections
CONNECTION = 64 * KIB  # TLS, and headers as long as they may be
LIGHT = 160 * KIB  # a request of less than 10,000 bytes: its body, njs, the buffers of its answer
HEAVY = 512 * KIB  # what JSON takes besides its body
CHUNKED = 18  # bytes of nginx's records per byte of a body in chunks of one byte
LARGE = 256 * KIB  # a body on disk: the buffers that write, read and send it
PLAIN = 6  # copies of an answer that classify.js has at once
SHARED = 2  # copies of a body in Triton's shared memory


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
        "requests": most["of_all"] * LIGHT,
        "JSON": most["heavy_of_all"] * (json_body + HEAVY),
        "large and chunked bodies": most["large_of_all"] * (LARGE + CHUNKED * json_body),
        "plain answers": most["plain_of_all"] * PLAIN * answer,
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
