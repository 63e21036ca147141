"""Closed load on a server: each client sends its next request when it has its answer; and perf_analyzer's load."""

from __future__ import annotations

import http.client
import itertools
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyhead_serving.hidden_arguments import start_hidden
from polyhead_serving.triton import ADMIN_HEADER

SHOWN_KEY = f"{ADMIN_HEADER}:hidden"  # in perf_analyzer's command line

Send = Callable[[list[str]], object]
Connect = Callable[[], AbstractContextManager[Send]]


@dataclass(frozen=True)
class Load:
    """The result of one load; latencies are per request."""

    texts_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests: int
    seconds: float


def summarize(latencies_s: Sequence[float], texts: int, seconds: float) -> Load:
    """Throughput and percentiles of requests that contained `texts` texts in all."""
    p50, p95, p99 = (round(float(value) * 1e3, 2) for value in np.percentile(latencies_s, [50, 95, 99]))
    return Load(round(texts / seconds, 2), p50, p95, p99, len(latencies_s), round(seconds, 2))


def requests_of(texts: Sequence[str], texts_a_request: int, passes: int) -> list[list[str]]:
    """The texts in their order, cut into requests and repeated `passes` times."""
    cut = [list(texts[start : start + texts_a_request]) for start in range(0, len(texts), texts_a_request)]
    return cut * passes


def passes_of(texts: Sequence[str], texts_s: float, window_s: float) -> int:
    """How many times all texts can be sent in about `window_s` at the rate `texts_s`; at least once."""
    return max(1, round(window_s * texts_s / len(texts)))


def median_load(loads: Sequence[Load]) -> dict[str, Any]:
    """The load with the median throughput, and the throughputs of all."""
    middle = sorted(loads, key=lambda load: load.texts_s)[len(loads) // 2]
    return asdict(middle) | {"texts_s_all": [load.texts_s for load in loads]}


def drive(connect: Connect, requests: Sequence[list[str]], clients: int) -> Load:
    """Sends all requests once, from `clients` threads with one connection each.

    Args:
        connect: gives a thread its own function that sends a request, which raises if the answer is an error.
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
    """A `connect` for servers that take JSON over HTTP. It keeps its connection open, as our own client does."""

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


def analyze(
    binary: Path, http: str, admin_key: str, texts: Sequence[str], texts_a_request: int, clients: int, passes: int
) -> Load:
    """Lets perf_analyzer, Triton's own load generator, send all texts in their order, `passes` times.

    It asks for all outputs. The throughput that it prints includes the time that it takes to notice the end. So the
    throughput here comes from its record of requests: from the first one sent to the last one answered.
    """
    with tempfile.TemporaryDirectory(prefix="polyhead-perf-analyzer-") as scratch:
        data, record = Path(scratch) / "texts.json", Path(scratch) / "record.json"
        steps = [{"TEXT": {"content": [text], "shape": [1]}} for text in texts]
        data.write_text(json.dumps({"data": steps}), encoding="utf-8")
        requests = len(texts) * passes // texts_a_request
        command = [
            str(binary), "-m", "gpt2_classifier", "-u", http, "-H", SHOWN_KEY, "--input-data", str(data),
            "-b", str(texts_a_request), "--concurrency-range", str(clients), "--request-count", str(requests),
            "--profile-export-file", str(record),
        ]  # fmt: skip
        environment = {"LD_LIBRARY_PATH": str(binary.parent / "lib")}
        # perf_analyzer takes the key only as an argument, and every user of a machine can read all arguments.
        running, is_hidden = start_hidden(
            command, {SHOWN_KEY: f"{ADMIN_HEADER}:{admin_key}"}, environment, lambda: None,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with running:
            if not is_hidden:
                running.kill()
                raise RuntimeError("the kernel does not let this process hide the server's key from other users")
            _, errors = running.communicate()
        if running.returncode != 0 or not record.is_file():
            raise RuntimeError(f"perf_analyzer failed ({running.returncode}): {errors[-2000:]}")
        # The record contains the requests' bytes, which are not always UTF-8.
        sent = json.loads(record.read_text(encoding="latin-1"), strict=False)["experiments"][0]["requests"]
    latencies = [(request["response_timestamps"][-1] - request["timestamp"]) / 1e9 for request in sent]
    first = min(request["timestamp"] for request in sent)
    last = max(request["response_timestamps"][-1] for request in sent)
    return summarize(latencies, len(sent) * texts_a_request, (last - first) / 1e9)
