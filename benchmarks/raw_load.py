"""Load on a server over raw sockets, from one thread in a process of its own: closed loops, open arrivals and bursts.

Threads of a Python client wait for each other's lock, and that would look like a slow answer of the server. Here one
thread writes prebuilt requests of one text and finds out with a selector which answers have come. A loop of 64
clients takes a twentieth of a core; each result says how much it was. The process (``python -m benchmarks.raw_load
TEXTS``) reads one job per line as JSON and prints the result. TEXTS is a JSON file.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from typing import Any

INFER = "/v2/models/gpt2_classifier/infer"
NO_ANSWER = 0  # stands for a status if the server closes a connection instead of answering
EXPIRED = b"the request's time ended in the queue"
WARM_UP_S = 1.0  # requests sent in the first second of a job are not counted
ANSWER_TIMEOUT_S = 60.0
# Open arrivals beyond this many unanswered requests are not sent, but counted. The proxy has 3,072 connections.
MOST_CONNECTIONS = 2048
LONG_AHEAD_S = 0.01  # the long request arrives this much before the short ones

RawLoad = Callable[..., dict[str, Any]]


@contextmanager
def raw_load(texts: Sequence[str], scratch: Path) -> Iterator[RawLoad]:
    """Runs the process; yields a function that runs a job, named like a method of `Driver` with its arguments."""
    file = scratch / f"texts-{len(list(scratch.iterdir()))}.json"
    file.write_text(json.dumps(list(texts)), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.raw_load", str(file)],
        cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    jobs, answers = process.stdin, process.stdout
    assert jobs is not None
    assert answers is not None

    def run(name: str, **arguments: object) -> dict[str, Any]:
        print(json.dumps([name, arguments]), file=jobs, flush=True)
        if not (line := answers.readline()):
            raise RuntimeError(f"the load's process ended during {name} {arguments}")
        result: dict[str, Any] = json.loads(line)
        return result

    with process:  # at its end the jobs end, and with them the process
        yield run


class RawConnection:
    """A connection that is kept. It has at most one request in flight.

    Attributes:
        due: when the request was to be sent.
        sent: when it was sent.
        is_asked: whether an answer is due.
        is_closing: whether the server has closed it, or closes it after the last answer.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.due = self.sent = 0.0
        self.is_asked = self.is_closing = False

    def send(self, request: bytes, due: float | None = None) -> None:
        """Sends a request."""
        self.received = b""
        self.is_asked = True
        self.sent = time.perf_counter()
        self.due = self.sent if due is None else due
        with suppress(ConnectionError):  # the server has just closed it; `receive` says so
            self.socket.sendall(request)

    def receive(self) -> tuple[int, bytes] | None:
        """Takes what has come; returns status and body once the answer is complete."""
        try:
            part = self.socket.recv(65536)
        except ConnectionError:
            part = b""
        if not part:
            was_asked, self.is_asked, self.is_closing = self.is_asked, False, True
            return (NO_ANSWER, b"") if was_asked else None
        self.received += part
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return None
        head = head.lower()
        self.is_closing = b"\r\nconnection: close" in head
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return None
        self.is_asked = False
        return int(head[9:12]), body


@dataclass
class RawAnswer:
    """One answered request; times in seconds."""

    status: int
    sent: float
    latency_s: float
    lag_s: float
    expired: bool


class Driver:
    """Sends texts to a server on loopback, in their order, again and again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._selector = selectors.DefaultSelector()
        self._connections: set[RawConnection] = set()

    def closed(self, port: int, clients: int, seconds: float) -> dict[str, Any]:
        """Each client sends its next text when it has its answer."""
        with self._measured(port, clients) as (answers, idle):
            requests = cycle(self._requests())
            end = time.perf_counter() + WARM_UP_S + seconds
            for connection in idle:
                connection.send(next(requests))
            in_flight = len(idle)
            while in_flight:
                for connection, answer in self._wait(ANSWER_TIMEOUT_S):
                    answers.append(answer)
                    if time.perf_counter() < end:
                        connection.send(next(requests))
                    else:
                        in_flight -= 1
        return self._result(answers, seconds)

    def open(
        self, port: int, rate: float, seconds: float, timeout_s: float | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Texts are sent at random times (Poisson), whether or not earlier ones were answered.

        Args:
            timeout_s: the deadline that each request brings.
            key: for a proxy that asks for one.
        """
        draw = random.Random(0)
        with self._measured(port, 0) as (answers, idle):
            requests = cycle(self._requests(timeout_s, key))
            due = began = time.perf_counter()
            end = began + WARM_UP_S + seconds
            in_flight = not_sent = 0
            while due < end or in_flight:
                while due < end and due <= time.perf_counter():
                    while idle and idle[-1].is_closing:
                        idle.pop()
                    if idle or in_flight < MOST_CONNECTIONS:
                        connection = idle.pop() if idle else self._connect(port)
                        connection.send(next(requests), due)
                        in_flight += 1
                    else:
                        not_sent += 1
                    due += draw.expovariate(rate)
                pause = max(0.0, due - time.perf_counter()) if due < end else ANSWER_TIMEOUT_S
                for connection, answer in self._wait(pause):
                    answers.append(answer)
                    in_flight -= 1
                    if not connection.is_closing:
                        idle.append(connection)
        return self._result(answers, seconds) | {"not_sent": not_sent}

    def burst(self, port: int, clients: int, long: bool) -> dict[str, Any]:
        """One text from each client at once. With `long`, the last of the texts, a long one, is sent just before."""
        with self._measured(port, clients + 1) as (answers, idle):
            *requests, first = self._requests()
            if long:
                idle[0].send(first)
                time.sleep(LONG_AHEAD_S)
            for connection, request in zip(idle[1:], requests, strict=False):
                connection.send(request)
            in_flight = clients + int(long)
            long_s = None
            while in_flight:
                for connection, answer in self._wait(ANSWER_TIMEOUT_S):
                    in_flight -= 1
                    if connection is idle[0]:
                        long_s = answer.latency_s
                    else:
                        answers.append(answer)
        if any(answer.status != HTTPStatus.OK for answer in answers):
            raise RuntimeError(f"a burst was answered with {Counter(answer.status for answer in answers)}")
        return {"latencies_s": [answer.latency_s for answer in answers], "long_s": long_s}

    def _requests(self, timeout_s: float | None = None, key: str | None = None) -> list[bytes]:
        return [request_of(text, timeout_s, key) for text in self._texts]

    def _connect(self, port: int) -> RawConnection:
        connection = RawConnection(port)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._connections.add(connection)
        return connection

    def _close(self, connection: RawConnection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connections.discard(connection)

    @contextmanager
    def _measured(self, port: int, clients: int) -> Iterator[tuple[list[RawAnswer], list[RawConnection]]]:
        """Opens connections, counts the processor time, and closes all connections at the end."""
        idle = [self._connect(port) for _ in range(clients)]
        gc.collect()
        gc.disable()
        self._cpu_s, self._began = time.process_time(), time.perf_counter()
        try:
            yield [], idle
        finally:
            self._core_share = (time.process_time() - self._cpu_s) / (time.perf_counter() - self._began)
            gc.enable()
            for connection in list(self._connections):
                self._close(connection)

    def _wait(self, seconds: float) -> list[tuple[RawConnection, RawAnswer]]:
        """The connections whose answers are complete; waits for the first bytes for at most `seconds`."""
        ready = self._selector.select(seconds)
        if not ready and seconds >= ANSWER_TIMEOUT_S:
            raise TimeoutError(f"no answer in {seconds} s")
        done = []
        for key, _ in ready:
            connection: RawConnection = key.data
            if (received := connection.receive()) is not None:
                status, body = received
                now = time.perf_counter()
                lag = connection.sent - connection.due
                expired = status == HTTPStatus.SERVICE_UNAVAILABLE and EXPIRED in body
                done.append((connection, RawAnswer(status, connection.sent, now - connection.sent, lag, expired)))
            if connection.is_closing and not connection.is_asked:
                self._close(connection)
        return done

    def _result(self, answers: Sequence[RawAnswer], seconds: float) -> dict[str, Any]:
        counted = [answer for answer in answers if answer.sent >= self._began + WARM_UP_S]
        return {
            "seconds": seconds,
            "latencies_s": [answer.latency_s for answer in counted],
            "lags_s": [answer.lag_s for answer in counted],
            "statuses": [answer.status for answer in counted],
            "expired": [answer.expired for answer in counted],
            "core_share": round(self._core_share, 3),
        }


def request_of(text: str, timeout_s: float | None, key: str | None = None) -> bytes:
    """The bytes of a request for the answer to one text."""
    body: dict[str, Any] = {
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [text]}],
        "outputs": [{"name": "PREDICTION"}],
    }
    if timeout_s is not None:
        body["parameters"] = {"timeout": round(timeout_s * 1e6)}
    data = json.dumps(body).encode()
    key_line = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\n{key_line}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def main() -> None:
    """Answers jobs ``[method, arguments]`` until stdin ends."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    driver = Driver(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(driver, name)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
