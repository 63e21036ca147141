"""One way to send texts, in its own process: its rate, its CPU time, and its memory over time.

``python -m benchmarks.client_load WAY URL TEXTS COUNT BATCH CONCURRENCY`` prints one JSON object. TEXTS is a JSON file;
a generator repeats its texts until there are COUNT. Each way ends with one answer per text as Python objects, and fails
if an answer is missing.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

SAMPLE_EVERY = 10_000  # texts between two samples of the memory
MODEL = "gpt2_classifier"

Answered = Iterator[int]  # how many more texts are answered
Way = Callable[..., Answered]  # of url, texts, batch and concurrency


def stream(url: str, texts: Iterator[str], batch: int, concurrency: int) -> Answered:
    """Our client."""
    from polyhead_client import Client

    with Client(url, timeout_s=600) as client:
        for prediction in client.stream(texts, batch, concurrency):
            if prediction.error is not None:
                raise SystemExit(f"no answer: {prediction.error}")
            yield 1


def tritonclient(url: str, texts: Iterator[str], batch: int, concurrency: int) -> Answered:
    """NVIDIA's client as its examples use it, with one connection per thread; each text's JSON is parsed."""
    import numpy as np
    from tritonclient import http

    def connect() -> Callable[[list[str]], list[object]]:
        client = http.InferenceServerClient(url, network_timeout=600)

        def send(rows: list[str]) -> list[object]:
            column = http.InferInput("TEXT", [len(rows), 1], "BYTES")
            column.set_data_from_numpy(np.array([[row.encode()] for row in rows], dtype=np.object_))
            result = client.infer(MODEL, [column], outputs=[http.InferRequestedOutput("PREDICTION")])
            return [json.loads(row) for row in result.as_numpy("PREDICTION")[:, 0]]

        return send

    return _threads(connect, texts, batch, concurrency)


def requests(url: str, texts: Iterator[str], batch: int, concurrency: int) -> Answered:
    """The requests library with Triton's JSON, with one session per thread."""
    import requests as library

    def connect() -> Callable[[list[str]], list[object]]:
        session = library.Session()

        def send(rows: list[str]) -> list[object]:
            body: Any = {
                "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [len(rows), 1], "data": rows}],
                "outputs": [{"name": "PREDICTION"}],
            }
            response = session.post(f"http://{url}/v2/models/{MODEL}/infer", json=body, timeout=600)
            response.raise_for_status()
            return [json.loads(row) for row in response.json()["outputs"][0]["data"]]

        return send

    return _threads(connect, texts, batch, concurrency)


WAYS: dict[str, Way] = {"stream": stream, "tritonclient": tritonclient, "requests": requests}


def _threads(
    connect: Callable[[], Callable[[list[str]], list[object]]], texts: Iterator[str], batch: int, concurrency: int
) -> Answered:
    """The loop that users write: threads that each take the next rows, send them and wait."""
    lock = threading.Lock()

    def work() -> int:
        send, answered = connect(), 0
        while True:
            with lock:
                rows = list(itertools.islice(texts, batch))
            if not rows:
                return answered
            answers = send(rows)
            if len(answers) != len(rows):
                raise SystemExit("an answer is missing")
            answered += len(answers)

    with ThreadPoolExecutor(concurrency) as pool:
        yield from [one.result() for one in [pool.submit(work) for _ in range(concurrency)]]


def measure(way: Way, url: str, texts: Sequence[str], count: int, batch: int, concurrency: int) -> dict[str, object]:
    """Sends a few texts, then `count`."""
    send = partial(way, url, batch=batch, concurrency=concurrency)
    endless = partial(itertools.islice, itertools.cycle(texts))
    sum(send(texts=endless(2 * batch * concurrency)))
    memory: list[tuple[int, int]] = []
    answered = 0
    cpu, began = time.process_time(), time.perf_counter()
    for more in send(texts=endless(count)):
        answered += more
        if answered % SAMPLE_EVERY == 0:
            memory.append((answered, _resident_bytes()))
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    if answered != count:
        raise SystemExit(f"{answered} of {count} texts were answered")
    return {
        "texts": count,
        "texts_s": round(count / seconds, 1),
        "cpu_us_a_text": round(used / count * 1e6, 2),
        "memory": memory,
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measures and prints."""
    way, url, texts, *numbers = sys.argv[1:]
    count, batch, concurrency = map(int, numbers)
    read = json.loads(Path(texts).read_text(encoding="utf-8"))
    print(json.dumps(measure(WAYS[way], url, read, count, batch, concurrency)))


if __name__ == "__main__":
    main()
