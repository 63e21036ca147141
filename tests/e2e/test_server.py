"""polyhead-serve with a real tritonserver: what it lets through, how it ends, and how it recovers."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from loadtest.local_server import READY_TIMEOUT_S, LocalServer, free_ports, port_options, serve_command
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.processes import ONE_THREAD, command_line, descendants, model_processes, shared_memory
from tests.kernel import lets_reach_into_processes

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
def test_admin_apis_are_closed(served: LocalServer, method: str, path: str) -> None:
    """APIs that could run code, read memory or silence the server are forbidden without the key."""
    assert status(served.url("http"), path, method) == 403


def test_admin_apis_are_closed_over_grpc(served: LocalServer) -> None:
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
def test_health_and_metadata_are_open(served: LocalServer, path: str) -> None:
    """Clients can read health and metadata."""
    assert status(served.url("http"), path) == 200


def test_metrics_are_there(served: LocalServer) -> None:
    """Prometheus can read the metrics."""
    assert status(served.url("metrics"), "/metrics") == 200


def probe(served: LocalServer, path: str) -> tuple[int, str]:
    """Status and text of the probe port."""
    connection = http.client.HTTPConnection(served.url("probe"), timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def wait_for_ready(served: LocalServer, status: int, within_s: float) -> str:
    """Waits until /ready has this status; gives what it says."""
    deadline = time.monotonic() + within_s
    while (found := probe(served, "/ready"))[0] != status:
        assert time.monotonic() < deadline, f"/ready was not {status} within {within_s} s: {found}"
        time.sleep(0.05)
    return found[1]


def test_killed_model_process_is_healed_then_sigterm_ends_all(repository: Path) -> None:
    """A killed model process is noticed within seconds, without a canary, and leads to a restart that serves.

    SIGTERM then ends with 0 and leaves no trace. Every line that was logged is a JSON object.
    """
    with LocalServer(repository, "--probe-interval-s", "60", "--log-format", "json", environment=ONE_THREAD) as served:
        before = infer_json(served.url("http"), BODY)
        assert probe(served, "/ready") == (200, "ready\n")
        (victim,) = model_processes(served)
        os.kill(victim, signal.SIGKILL)
        assert f"model process {victim} died of SIGKILL" in wait_for_ready(served, 503, within_s=5)
        wait_for_ready(served, 200, within_s=READY_TIMEOUT_S)
        assert infer_json(served.url("http"), BODY) == before
        assert len(model_processes(served)) == 1
        assert len(shared_memory(served)) == 1
        assert 'polyhead_restarts_total{reason="model_process"} 1' in probe(served, "/metrics")[1]
        assert_ends_cleanly(served, signal.SIGTERM)
        objects = [json.loads(line) for line in served.lines]
    assert {"time", "level", "source", "message"} <= set.intersection(*map(set, objects))
    assert {line["source"] for line in objects} == {"polyhead-serve", "triton"}


def test_killed_server_is_healed_then_sigint_ends_all(repository: Path) -> None:
    """If tritonserver dies, its orphans are removed and it is restarted; Ctrl-C ends it like SIGTERM."""
    with LocalServer(repository, environment=ONE_THREAD) as served:
        (server,) = [pid for pid in descendants(served.process.pid) if b"/tritonserver\0" in command_line(pid)]
        orphans = model_processes(served)
        os.kill(server, signal.SIGKILL)
        served.wait_until_ready(times=2)
        assert not [pid for pid in orphans if command_line(pid)]
        assert infer_json(served.url("http"), BODY)[0] == 200
        assert_ends_cleanly(served, signal.SIGINT)


def test_stopped_model_process_is_healed(repository: Path) -> None:
    """The canary finds a model process that hangs: not ready after one failure, restarted after --canary-failures."""
    timing = ("--probe-interval-s", "0.2", "--canary-timeout-s", "1", "--canary-failures", "2")
    with LocalServer(repository, *timing, environment=ONE_THREAD) as served:
        (victim,) = model_processes(served)
        os.kill(victim, signal.SIGSTOP)
        wrong = wait_for_ready(served, 503, within_s=10)
        assert "no answer within 1 s" in wrong or "is not healthy" in wrong  # Triton itself waits about as long
        served.wait_until_ready(times=2)
        assert not command_line(victim)
        assert infer_json(served.url("http"), BODY)[0] == 200
        assert 'polyhead_restarts_total{reason="canary"} 1' in probe(served, "/metrics")[1]


def test_orphans_of_a_killed_supervisor_are_removed(repository: Path) -> None:
    """A killed supervisor leaves shared memory behind, and the next one on the machine removes it."""
    with LocalServer(repository, environment=ONE_THREAD) as first:
        below = descendants(first.process.pid)
        for pid in [first.process.pid, *below]:
            os.kill(pid, signal.SIGKILL)
        first.process.wait(10)
        assert shared_memory(first)
        with LocalServer(repository, environment=ONE_THREAD) as second:
            assert shared_memory(first) == []
            assert len(shared_memory(second)) == 1
            assert any("removed the orphans of polyhead_" in line for line in second.lines)


class Caller(threading.Thread):
    """Asks over one keep-alive connection until it is refused; counts the answers."""

    def __init__(self, place: str) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.answered = 0
        self.lost: list[str] = []

    def run(self) -> None:
        """Opens a new connection if the old one has ended between two requests, as all HTTP clients do."""
        body = json.dumps(BODY).encode()
        connection, is_fresh = http.client.HTTPConnection(self.place, timeout=20), True
        while True:
            try:
                connection.request("POST", "/v2/models/gpt2_classifier/infer", body)
                response = connection.getresponse()
                answer = json.load(response)
            except ConnectionRefusedError:
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                if is_fresh:
                    self.lost.append(repr(error))
                connection.close()
                is_fresh = True
                continue
            is_fresh = False
            if response.status == 200 and answer["outputs"]:
                self.answered += 1
            else:
                self.lost.append(f"{response.status} {answer}")
        connection.close()


def test_no_accepted_request_is_lost_on_sigterm(repository: Path) -> None:
    """Under load from busy connections, SIGTERM takes /ready down first, and then every request is answered.

    Neither an idle connection nor busy ones that never pause delay the end, and a second signal does no harm.
    """
    with LocalServer(repository, "--drain-s", "4", "--exit-timeout-s", "8", environment=ONE_THREAD) as served:
        idle = http.client.HTTPConnection(served.url("http"), timeout=10)
        idle.request("GET", "/v2/health/live")
        idle.getresponse().read()
        callers = [Caller(served.url("http")) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(1)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert wait_for_ready(served, 503, within_s=0.9) == "draining\n"
        at_drain = sum(caller.answered for caller in callers)
        while sum(caller.answered for caller in callers) == at_drain:
            assert time.monotonic() - began < 3, "no request was answered during the drain"
            time.sleep(0.05)  # Triton's batcher sometimes sleeps for half a second (decision 18)
        code = served.end(signal.SIGTERM)
        took_s = time.monotonic() - began
        for caller in callers:
            caller.join(10)
            assert caller.answered > 10
        lost = [reason for caller in callers for reason in caller.lost]
        idle.close()
        if lets_reach_into_processes():
            assert (code, lost) == (0, [])
            assert took_s < 10
        else:  # then open connections end with the exit timeout, under their requests
            assert any("the kernel forbids access" in line for line in served.lines)


def assert_ends_cleanly(served: LocalServer, number: signal.Signals) -> None:
    """Exit code 0, no process and no shared memory left."""
    processes = descendants(served.process.pid)
    assert served.end(number) == 0
    assert not [pid for pid in processes if command_line(pid)]
    assert shared_memory(served) == []


def test_damaged_checkpoint_ends_with_the_reason(repository: Path, tmp_path: Path) -> None:
    """A failed first start ends with code 1, and its last line names the damaged file."""
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


def test_plain_tritonserver_serves_the_repository(repository: Path, tmp_path: Path) -> None:
    """The commands that --dry-run prints serve the repository without polyhead-serve."""
    ports = free_ports()
    command = [*serve_command(), "--repository", str(repository), "--dry-run", *port_options(ports)]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    place = f"127.0.0.1:{ports['http']}"
    # The script makes a folder of backends in TMPDIR.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    server = subprocess.Popen(["sh", "-e", "-c", script], start_new_session=True, env=environment)
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


def is_answered(place: str) -> bool:
    """Whether an inference there succeeds."""
    try:
        return infer_json(place, BODY)[0] == 200
    except OSError:
        return False
