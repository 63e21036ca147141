"""The probe port: what probes, Prometheus and the proxy learn from the supervisor."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from polyhead_serving.health import MAX_CONNECTIONS, Health, probe_port


@pytest.fixture
def health() -> Health:
    """A supervisor's state at its start."""
    return Health()


@pytest.fixture
def place(health: Health) -> Iterator[tuple[str, int]]:
    """Where the probe port listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with probe_port(health, "127.0.0.1", port):
        yield "127.0.0.1", port


def get(place: tuple[str, int], path: str, method: str = "GET") -> tuple[int, str]:
    """Status and text."""
    connection = http.client.HTTPConnection(*place, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_ready_follows_the_canary_and_the_drain(health: Health, place: tuple[str, int]) -> None:
    """503 with the reason until a canary is answered, then 200; 503 for good once it drains; always live."""
    assert get(place, "/ready") == (503, "starting\n")
    health.canary(None, 0.01)
    assert get(place, "/ready") == (200, "ready\n")
    assert get(place, "/ready", "HEAD") == (200, "")
    health.canary("m: no answer", 5.0)
    assert get(place, "/ready") == (503, "m: no answer\n")
    health.restarting("canary", "m: no answer")
    assert get(place, "/ready") == (503, "restarting: m: no answer\n")
    health.canary(None, 0.01)
    health.drain()
    health.canary(None, 0.01)
    assert get(place, "/ready") == (503, "draining\n")
    assert get(place, "/live") == (200, "live\n")
    assert get(place, "/else")[0] == 404


def test_metrics_count(health: Health, place: tuple[str, int]) -> None:
    """Readiness, the last canary's time, failed canaries, and restarts by reason."""
    health.canary(None, 0.25)
    health.canary("bad", 5.0)
    health.restarting("canary", "bad")
    health.restarting("model_process", "died")
    health.canary(None, 0.5)
    lines = get(place, "/metrics")[1].splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "polyhead_ready 1",
        "polyhead_canary_seconds 0.500000",
        "polyhead_canary_failures_total 1",
        'polyhead_restarts_total{reason="exit"} 0',
        'polyhead_restarts_total{reason="canary"} 1',
        'polyhead_restarts_total{reason="model_process"} 1',
    ]


def test_a_silent_client_holds_nobody_up(health: Health, place: tuple[str, int]) -> None:
    """A connection on which nothing is sent delays neither other probes nor the end."""
    with socket.create_connection(place):
        assert get(place, "/live")[0] == 200


def test_failure_tells_the_proxy_what_a_failed_request_gets(health: Health, place: tuple[str, int]) -> None:
    """503 while the server is not ready or has lost a process, so that the client repeats the request; else 500."""
    assert get(place, "/failure")[0] == 503
    health.canary(None, 0.1)
    assert get(place, "/failure") == (500, '{"error": "the server failed to answer; see its log"}')
    health.restarting("model_process", "died")
    assert get(place, "/failure") == (503, '{"error": "the server is restarting; try again later"}')
    broken = Health(lambda: True)
    broken.canary(None, 0.1)
    assert broken.is_restarting()


def test_idle_connections_keep_no_probe_out(health: Health, place: tuple[str, int]) -> None:
    """Connections that send nothing or little take few threads, however many, and probes are answered meanwhile."""
    health.canary(None, 0.01)
    with ExitStack() as opened:
        held = [opened.enter_context(socket.create_connection(place, timeout=5)) for _ in range(3 * MAX_CONNECTIONS)]
        for connection in held[-MAX_CONNECTIONS // 2 :]:
            connection.sendall(b"GET /ready HTT")
        for _ in range(10):
            assert get(place, "/ready") == (200, "ready\n")
        assert held[0].recv(1) == b""  # the oldest was ended
        assert threading.active_count() < 2 * MAX_CONNECTIONS
