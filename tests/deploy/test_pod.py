"""A pod as the manifests describe it: its proxy's command and its probes, run beside a real server."""

from __future__ import annotations

import os
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

from loadtest.local_server import LocalServer, free_ports
from tests.deploy.manifests import DEPLOY, containers, environment, kustomized, only
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.proxied import KEY, MODULES, NGINX, Proxied

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
    """What a probe, which checks no certificate, gets; or a caller with a key, who sends a body."""
    context = ssl._create_unverified_context()
    opener = urllib.request.build_opener(NO_PROXY, urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {KEY}"} if body else {})
    try:
        with opener.open(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@contextmanager
def proxy(kind: str, served: LocalServer) -> Iterator[str]:
    """nginx as the pod's command starts it, with the pod's folders in a place of its own; gives its URL."""
    described = container(pod_of(kind), "nginx")
    port = free_ports()["http"]
    with tempfile.TemporaryDirectory(prefix="polyhead-pod-") as name, Proxied() as another:
        folder = Path(name)
        folder.chmod(0o755)  # if root runs it, nginx's workers are somebody else
        command = described["args"][0].replace("/etc/polyhead-nginx/", f"{DEPLOY / 'nginx'}/")
        command = command.replace("/tmp/", f"{folder}/")
        assert str(folder) in command
        places = {
            "/etc/polyhead-tls/tls.crt": str(another.certificate),
            "/etc/polyhead-tls/tls.key": str(another.folder / "key.pem"),
            "/etc/polyhead-keys/keys": str(another.folder / "keys"),
        }
        variables = {name: places.get(value, value) for name, value in environment(described).items()}
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
    """The command starts nginx; a probe is told that the server is ready; a key opens inference, and only a key."""
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
    """The probe's command ends well while the supervisor answers, and not where none does."""
    command = pod_of(kind)["containers"][0]["livenessProbe"]["exec"]["command"]
    assert command[0] == "python"

    def run(port: int) -> int:
        program = command[2].replace(":8003/", f":{port}/")
        assert program != command[2]
        return subprocess.run([sys.executable, command[1], program], capture_output=True, check=False).returncode

    assert run(served.ports["probe"]) == 0
    assert run(free_ports()["probe"]) != 0


def test_bad_requests_are_no_backend_failures(served: LocalServer) -> None:
    """Callers who ask wrongly must not raise the alarm that a model is dead."""
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
