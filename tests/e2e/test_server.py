"""polyhead-serve with a real tritonserver: what it lets through, how it ends, and that it heals."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.served import (
    READY_TIMEOUT_S,
    Served,
    command_line,
    descendants,
    free_ports,
    infer_json,
    json_body,
    port_options,
    serve_command,
)

BODY = json_body(["Rain."], ["SCORES"])


def status(place: str, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> int:
    """An HTTP status."""
    connection = http.client.HTTPConnection(place, timeout=10)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/gpt2_classifier/load"),
        ("GET", "/v2/models/gpt2_classifier/config"),
        ("GET", "/v2/models/gpt2_classifier/stats"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"),
        ("GET", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
    ],
)
def test_admin_apis_are_closed(served: Served, method: str, path: str) -> None:
    """What could run code, read memory or silence the server is forbidden without the key."""
    assert status(served.url("http"), path, method) == 403


def test_admin_apis_are_closed_over_grpc(served: Served) -> None:
    """gRPC refuses the same."""
    with tritonclient.grpc.InferenceServerClient(served.url("grpc")) as client:
        for ask in (
            client.get_model_repository_index,
            client.get_inference_statistics,
            client.get_log_settings,
            client.get_trace_settings,
            client.get_system_shared_memory_status,
            lambda: client.get_model_config("gpt2_classifier"),
            lambda: client.load_model("gpt2_classifier"),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                ask()
        assert client.get_model_metadata("gpt2_classifier").name == "gpt2_classifier"


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/gpt2_classifier", "/v2/models/gpt2_classifier/ready"])
def test_health_and_metadata_are_open(served: Served, path: str) -> None:
    """A client can look before it asks."""
    assert status(served.url("http"), path) == 200


def test_metrics_are_there(served: Served) -> None:
    """Prometheus finds its numbers."""
    assert status(served.url("metrics"), "/metrics") == 200


def test_killed_model_process_is_healed_then_sigterm_ends_all(repository: Path) -> None:
    """A killed model process leads to a restart that serves again; SIGTERM then ends with 0 and leaves no trace."""
    with Served(repository, "--probe-interval-s", "0.2") as served:
        before = infer_json(served.url("http"), BODY)
        (victim,) = served.model_processes()
        os.kill(victim, signal.SIGKILL)
        assert infer_json(served.url("http"), BODY)[0] == 500
        served.wait_until_ready(times=2)
        assert infer_json(served.url("http"), BODY) == before
        assert len(served.model_processes()) == 1
        assert len(served.shared_memory()) == 1
        assert_ends_cleanly(served, signal.SIGTERM)


def test_killed_server_is_healed_then_sigint_ends_all(repository: Path) -> None:
    """A tritonserver that dies takes its orphans with it and comes back; Ctrl-C ends it like SIGTERM."""
    with Served(repository, "--probe-interval-s", "0.2") as served:
        (server,) = [pid for pid in descendants(served.process.pid) if b"/tritonserver\0" in command_line(pid)]
        orphans = served.model_processes()
        os.kill(server, signal.SIGKILL)
        served.wait_until_ready(times=2)
        assert not [pid for pid in orphans if command_line(pid)]
        assert infer_json(served.url("http"), BODY)[0] == 200
        assert_ends_cleanly(served, signal.SIGINT)


def test_stopped_model_process_is_healed(repository: Path) -> None:
    """A model process that hangs is found by the canary, which waits no longer than its timeout."""
    with Served(repository, "--probe-interval-s", "0.2") as served:
        (victim,) = served.model_processes()
        os.kill(victim, signal.SIGSTOP)
        served.wait_until_ready(times=2)
        assert not command_line(victim)
        assert infer_json(served.url("http"), BODY)[0] == 200


def assert_ends_cleanly(served: Served, number: signal.Signals) -> None:
    """Exit code 0, no process and no shared memory left."""
    processes = descendants(served.process.pid)
    assert served.end(number) == 0
    assert not [pid for pid in processes if command_line(pid)]
    assert served.shared_memory() == []


def test_idle_connection_does_not_hold_the_exit(repository: Path) -> None:
    """A client that keeps its connection open delays the end by Triton's short exit timeout, no longer."""
    with Served(repository) as served:
        connection = http.client.HTTPConnection(served.url("http"), timeout=10)
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        began = time.monotonic()
        assert_ends_cleanly(served, signal.SIGTERM)
        assert time.monotonic() - began < 12
        connection.close()


def test_damaged_checkpoint_ends_with_the_reason(repository: Path, tmp_path: Path) -> None:
    """A first start that fails ends with code 1, and its last line names the file that is wrong."""
    damaged = tmp_path / "repository"
    shutil.copytree(repository, damaged)
    (damaged / "gpt2_classifier" / "1" / "checkpoint" / "model.safetensors").write_bytes(b"x")
    options = port_options(free_ports())
    command = [*serve_command(), "--repository", str(damaged), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=READY_TIMEOUT_S)
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert "did not start" in last
    assert "model.safetensors" in last
    assert "At:" not in last


def test_plain_tritonserver_serves_the_repository(repository: Path) -> None:
    """The commands that --dry-run prints serve the repository without polyhead-serve."""
    ports = free_ports()
    command = [*serve_command(), "--repository", str(repository), "--dry-run", *port_options(ports)]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    folder = Path(next(line for line in script.splitlines() if line.startswith("mkdir")).split()[-1]).parent
    place = f"127.0.0.1:{ports['http']}"
    server = subprocess.Popen(["sh", "-e", "-c", script], start_new_session=True)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_answered(place):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.terminate()
        assert server.wait(30) == 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        shutil.rmtree(folder)


def is_answered(place: str) -> bool:
    """Whether an inference there succeeds."""
    try:
        return infer_json(place, BODY)[0] == 200
    except OSError:
        return False
