"""Sends hostile requests over raw sockets and judges the answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.chaos.corpus import TOLERANCE
from tests.chaos.count import Count
from tests.chaos.hostile import Hostile

ANSWER_TIMEOUT_S = 60.0
PATIENCE_S = 0.3  # for requests that never end
CLOSED, SILENT = "closed", "silent"
# Its sender asked for a verb, an encoding or a version of HTTP that is not there: true, and no failure of the server.
NOT_OFFERED = (501, 505)


@dataclass(frozen=True)
class Door:
    """Where to send, with the headers of an allowed caller."""

    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()
    tls: ssl.SSLContext | None = None

    def connect(self) -> socket.socket:
        """A new connection."""
        plain = socket.create_connection((self.host, self.port), timeout=ANSWER_TIMEOUT_S)
        return self.tls.wrap_socket(plain, server_hostname=self.host) if self.tls else plain


class Attack:
    """Sends each request once, a few at a time.

    Args:
        door: where to.
        expected: the scores of each text of a well-formed request; NO_SCORE for a text that has no answer.

    Attributes:
        count: how the requests ended.
        statuses: per kind, how many requests got which status, were `CLOSED`, or were left `SILENT`.
    """

    def __init__(self, door: Door, expected: Mapping[bytes, NDArray[np.float32]], threads: int = 4) -> None:
        self.count = Count()
        self.statuses: Counter[tuple[str, str]] = Counter()
        self._door = door
        self._expected = expected
        self._threads = threads
        self._lock = threading.Lock()

    def send_all(self, requests: Iterable[Hostile]) -> None:
        """Returns when all were sent and judged."""
        shared = iter(requests)
        threads = [threading.Thread(target=self._run, args=(shared,)) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, shared: Iterator[Hostile]) -> None:
        connection = _Connection(self._door)
        while True:
            with self._lock:
                hostile = next(shared, None)
            if hostile is None:
                connection.close()
                return
            try:
                status, body = connection.send(hostile)
            except OSError as error:
                status, body = CLOSED, repr(error).encode()
            with self._lock:
                self.statuses[hostile.kind, str(status)] += 1
            self._judge(hostile, status, body)

    def _judge(self, hostile: Hostile, status: int | str, body: bytes) -> None:
        about = f"{hostile.kind}: {hostile.wire(())[:300]!r} got {status} {body[:200]!r}"
        match status:
            case 429 | 503:
                self.count.add("shed")
            case 200 if hostile.texts is not None:
                self.count.add("answered" if self._is_right(hostile.texts, body) else "wrong", about)
            case int() if hostile.texts is not None:
                self.count.add("lost", about)  # it is only its texts that are hostile
            case int() if status < 500 or status in NOT_OFFERED:
                self.count.add("answered")
            case "closed" | "silent" if not hostile.finished:
                self.count.add("answered")
            case _:
                self.count.add("lost", about)

    def _is_right(self, texts: tuple[bytes, ...], body: bytes) -> bool:
        try:
            (output,) = json.loads(body)["outputs"]
            scores = np.array(output["data"], dtype=np.float32).reshape(output["shape"])
        except (ValueError, LookupError, TypeError):
            return False
        expected = np.stack([self._expected[text] for text in texts])
        return scores.shape == expected.shape and np.allclose(scores, expected, TOLERANCE, TOLERANCE)


@dataclass
class _Connection:
    """Kept for the next request where HTTP allows it."""

    door: Door
    socket: socket.socket | None = field(default=None)

    def send(self, hostile: Hostile) -> tuple[int | str, bytes]:
        """Status and body; see `Attack.statuses`."""
        reused = self.socket is not None and not hostile.framed and hostile.finished
        if not reused:
            self.close()
            self.socket = self.door.connect()
        status, body = self._exchange(hostile)
        if reused and status == CLOSED:
            # The server may end a kept connection at any time: as every client does, once more on a fresh one.
            self.close()
            self.socket = self.door.connect()
            status, body = self._exchange(hostile)
        return status, body

    def close(self) -> None:
        """Ends it, if it is open."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _exchange(self, hostile: Hostile) -> tuple[int | str, bytes]:
        assert self.socket is not None
        keep = False
        self.socket.settimeout(ANSWER_TIMEOUT_S if hostile.finished else PATIENCE_S)
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                # Where it refused before it had read all, its answer is still there to be read.
                self.socket.sendall(hostile.wire(self.door.headers))
            response = http.client.HTTPResponse(self.socket, method=hostile.method)
            response.begin()
            body = response.read()
            keep = hostile.finished and not hostile.framed and not response.will_close
            return response.status, body
        except TimeoutError:
            return SILENT, b""
        except (OSError, http.client.HTTPException) as error:
            return CLOSED, repr(error).encode()
        finally:
            if not keep:
                self.close()
