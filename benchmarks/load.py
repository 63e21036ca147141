"""Load on a server: clients in a closed loop over given texts, each waiting for its answer before it asks again."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Send = Callable[[list[str]], object]
Connect = Callable[[], AbstractContextManager[Send]]


@dataclass(frozen=True)
class Load:
    """What one point of load gave; latencies are a request's."""

    texts_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests: int
    seconds: float


def summarize(latencies_s: Sequence[float], texts: int, seconds: float) -> Load:
    """Throughput and percentiles of requests that together held so many texts."""
    p50, p95, p99 = (round(float(value) * 1e3, 2) for value in np.percentile(latencies_s, [50, 95, 99]))
    return Load(round(texts / seconds, 2), p50, p95, p99, len(latencies_s), round(seconds, 2))


def requests_of(texts: Sequence[str], texts_a_request: int, passes: int) -> list[list[str]]:
    """The texts in their order, cut into requests, so many times over."""
    cut = [list(texts[start : start + texts_a_request]) for start in range(0, len(texts), texts_a_request)]
    return cut * passes


def passes_of(texts: Sequence[str], texts_s: float, window_s: float) -> int:
    """How often the texts go through in about that time at that rate; at least once."""
    return max(1, round(window_s * texts_s / len(texts)))


def median_load(loads: Sequence[Load]) -> dict[str, Any]:
    """The load of median throughput, with the throughput of all."""
    middle = sorted(loads, key=lambda load: load.texts_s)[len(loads) // 2]
    return asdict(middle) | {"texts_s_all": [load.texts_s for load in loads]}


def drive(connect: Connect, requests: Sequence[list[str]], clients: int) -> Load:
    """Sends all requests once, from so many threads with a connection each.

    Args:
        connect: gives a thread its own way to send a request; what it returns raises if there is no good answer.
    """
    turns = itertools.count()
    start = threading.Barrier(clients + 1)

    def client() -> list[float]:
        latencies = []
        with connect() as send:
            start.wait()
            while (turn := next(turns)) < len(requests):
                began = time.perf_counter()
                send(requests[turn])
                latencies.append(time.perf_counter() - began)
        return latencies

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        start.wait()
        began = time.perf_counter()
        latencies = [latency for one in running for latency in one.result()]
        seconds = time.perf_counter() - began
    return summarize(latencies, sum(map(len, requests)), seconds)


def json_sender(port: int, path: str, body: Callable[[list[str]], dict[str, Any]]) -> Connect:
    """A `connect` for servers that take JSON over HTTP; a connection is kept open, as our own client does."""

    @contextmanager
    def connect() -> Iterator[Send]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:

            def send(texts: list[str]) -> object:
                data = json.dumps(body(texts)).encode()
                connection.request("POST", path, data, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read()
                if response.status != http.HTTPStatus.OK:
                    raise RuntimeError(f"{path}: {response.status} {answer[:500]!r}")
                return json.loads(answer)

            yield send

    return connect
