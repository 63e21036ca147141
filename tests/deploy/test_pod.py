"""A pod as the manifests describe it: the proxy's command and the probes, run beside a real server."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtest.local_proxy import DIRECTIVES, MODULES, NGINX
from loadtest.local_server import LocalServer, free_ports
from tests.deploy.manifests import DEPLOY, containers, environment, kustomized, only
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.proxied import KEY, Proxied

NO_PROXY = urllib.request.ProxyHandler({})


def pod_of(kind: str) -> dict[str, Any]:
    """The spec of the Deployment's pods, or of the ServingRuntime's."""
    if kind == "Deployment":
        return dict(only(kustomized(DEPLOY / "kubernetes"), kind)["spec"]["template"]["spec"])
    return dict(only(kustomized(DEPLOY / "kserve"), kind)["spec"])


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """One of its containers."""
    (found,) = (each for each in containers(pod) if each["name"] == name)
    return dict(found)


def status_of(url: str, body: bytes | None = None) -> int:
    """The status that a probe gets, which checks no certificate; with a body, that a caller with a key gets."""
    context = ssl._create_unverified_context()
    opener = urllib.request.build_opener(NO_PROXY, urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {KEY}"} if body else {})
    try:
        with opener.open(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def relocated(text: str, places: dict[str, Path]) -> str:
    """The text with the container's paths replaced by ours: whole paths, and each only once."""

    def replace(found: re.Match[str]) -> str:
        for theirs, ours in places.items():
            if found[0] == theirs or found[0].startswith(f"{theirs}/"):
                return f"{ours}{found[0].removeprefix(theirs)}"
        return found[0]

    return re.sub(r"(?<![\w./-])/[\w./-]+", replace, text)


@pytest.mark.parametrize("ours", ["/tmp/checkout", "/srv/tmp/etc/polyhead-nginx", "/tmp/etc/polyhead-nginx/tmp"])
def test_paths_are_replaced_once(ours: str) -> None:
    """Our own paths may contain the container's; other paths that only look alike stay."""
    places = {"/etc/polyhead-nginx": Path(ours), "/tmp": Path(f"{ours}/tmp")}
    command = "/etc/polyhead-nginx/render > /tmp/a && sed -e 's/ ssl;$/;/' -c=/tmp /tmpfs/a /var/tmp/a"
    expected = f"{ours}/render > {ours}/tmp/a && sed -e 's/ ssl;$/;/' -c={ours}/tmp /tmpfs/a /var/tmp/a"
    assert relocated(command, places) == expected


@contextmanager
def proxy(kind: str, served: LocalServer) -> Iterator[str]:
    """Runs nginx with the pod's command and its folders elsewhere; gives its URL."""
    described = container(pod_of(kind), "nginx")
    port = free_ports()["http"]
    with tempfile.TemporaryDirectory(prefix="polyhead-pod-") as name, Proxied() as another:
        folder = Path(name)
        places = {
            "/etc/polyhead-nginx": DEPLOY / "nginx",
            "/etc/polyhead-tls/tls.crt": another.certificate,
            "/etc/polyhead-tls/tls.key": another.folder / "key.pem",
            "/etc/polyhead-keys/keys": another.folder / "keys",
            "/tmp": folder,
        }
        command = relocated(described["args"][0], places).replace("daemon off;", DIRECTIVES)
        assert str(folder) in command
        variables = {name: relocated(value, places) for name, value in environment(described).items()}
        variables |= {"LISTEN": f"127.0.0.1:{port}", "RUN": f"{folder}/run", "MODULES": str(MODULES)}
        variables |= {"INFERENCE": served.url("http"), "METRICS": served.url("metrics"), "PROBE": served.url("probe")}
        path = f"{NGINX.parent}:{os.environ['PATH']}"
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*described["command"], command], env={**variables, "PATH": path}, stdout=log, stderr=log
            )
        url = f"{'https' if kind == 'Deployment' else 'http'}://127.0.0.1:{port}"
        try:
            wait_for(url, process, folder / "log")
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)  # the image's stop signal
            process.wait(20)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            status_of(url)
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("kind", ["Deployment", "ServingRuntime"])
def test_requests_and_probes_come_through(kind: str, served: LocalServer) -> None:
    """The command starts nginx, the probes say ready, and only a key opens inference."""
    server = pod_of(kind)["containers"][0]
    body = b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["Rain."]}]}'
    with proxy(kind, served) as url:
        for probe in ("startupProbe", "readinessProbe"):
            asked = server[probe]["httpGet"]
            assert asked.get("scheme", "HTTP").lower() == url.partition(":")[0]
            assert status_of(url + asked["path"]) == 200
        assert status_of(f"{url}/v2/models/gpt2_classifier/infer", body) == 200
        assert status_of(f"{url}/v2/repository/index", b"{}") == 404
        assert status_of(f"{url}/metrics") == 403  # the pods' network is another than this machine's


@pytest.mark.parametrize("kind", ["Deployment", "ServingRuntime"])
def test_liveness_is_the_supervisors(kind: str, served: LocalServer) -> None:
    """The probe's command succeeds while the supervisor answers, and fails if there is none."""
    command = pod_of(kind)["containers"][0]["livenessProbe"]["exec"]["command"]
    assert command[0] == "python"

    def run(port: int) -> int:
        program = command[2].replace(":8003/", f":{port}/")
        assert program != command[2]
        return subprocess.run([sys.executable, command[1], program], capture_output=True, check=False).returncode

    assert run(served.ports["probe"]) == 0
    assert run(free_ports()["probe"]) != 0


def test_bad_requests_are_no_backend_failures(served: LocalServer) -> None:
    """Bad requests do not count as failures of the backend, on which an alert pages."""
    wrong = {"parameters": {"nonsense": 1}} | {
        k: v for k, v in json_body(["Rain."], ["SCORES"]).items() if k != "parameters"
    }
    for body in (wrong, json_body(["Rain."], ["NONSENSE"]), b"no JSON"):
        assert infer_json(served.url("http"), body)[0] >= 400
    opener = urllib.request.build_opener(NO_PROXY)
    with opener.open(f"http://{served.url('metrics')}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    (count,) = (line for line in lines if line.startswith("nv_inference_request_failure") and "BACKEND" in line)
    assert count.endswith(" 0")
