"""Harms one of two replicas while a client asks both."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from loadtest.local_server import LocalServer
from tests.chaos.corpus import Corpus
from tests.chaos.load import VerifiedLoad, through_client
from tests.chaos.plain import is_right
from tests.e2e.processes import ONE_THREAD, command_line, descendants, model_processes

WAITING = ("polyhead_waiting_texts", "polyhead_waiting_tokens")
EXACT = {**ONE_THREAD, "POLYHEAD_PRECISION": "fp32"}  # so that each text has one right answer


def serve(
    repository: Path,
    *options: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    wrapper: Sequence[str] = (),
) -> LocalServer:
    """A replica with these options, in float32 and on one thread, and otherwise with polyhead-serve's defaults."""
    return LocalServer(repository, *options, environment=EXACT | dict(environment), wrapper=wrapper)


def server_pid(served: LocalServer) -> int:
    """tritonserver's process."""
    (pid,) = [pid for pid in descendants(served.process.pid) if b"/tritonserver\0" in command_line(pid)]
    return pid


def failed_requests(served: LocalServer) -> int:
    """Failed requests since the server started, by Triton's own count."""
    return int(metric(served, "nv_inference_request_failure"))


def metric(served: LocalServer, name: str) -> float:
    """The sum of a metric's values at Triton's metrics port; 0 if it has none."""
    connection = http.client.HTTPConnection(served.url("metrics"), timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(float(number) for number in re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE))


def wait_until_empty(served: LocalServer, within_s: float = 15.0) -> None:
    """Waits until the model's queue is empty: without requests, what waits must go back to zero."""
    deadline = time.monotonic() + within_s
    while waiting := {name: metric(served, name) for name in WAITING if metric(served, name)}:
        assert time.monotonic() < deadline, f"without requests, the queue still has {waiting}"
        time.sleep(0.3)


def wait_until_healed(served: LocalServer, corpus: Corpus, victims: Collection[int], within_s: float = 90.0) -> None:
    """Waits until a server gives right answers from a model process that is none of the victims."""
    deadline = time.monotonic() + within_s
    while True:
        alive = model_processes(served)
        if alive and not set(alive) & set(victims) and is_right(served.url("http"), corpus):
            return
        assert time.monotonic() < deadline, f"not healed within {within_s:g} s:\n{''.join(served.lines[-20:])}"
        time.sleep(0.1)


def survive(
    harmed: LocalServer, healthy: LocalServer, corpus: Corpus, inject: Callable[[], object]
) -> tuple[VerifiedLoad, float]:
    """Injects a fault into one of two replicas under load; gives the load and the seconds until it was healed."""
    with (
        through_client(harmed.url("http"), healthy.url("http")) as client,
        VerifiedLoad(client.scores, corpus) as load,
    ):
        load.wait_for(100)
        victims = model_processes(harmed)
        inject()
        began = time.monotonic()
        wait_until_healed(harmed, corpus, victims)
        recovery_s = time.monotonic() - began
        load.wait_for(100)
    left = [pid for pid in victims if command_line(pid)]
    assert not left, f"model processes of the fallen server are still there: {left}"
    return load, recovery_s
