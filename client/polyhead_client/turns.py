"""The line in which calls wait for their turn, so that a client sends a bounded number of requests at a time.

The wait is not part of a call's deadline as long as other calls are answered. A call gives up when none was answered
for as long as its own deadline.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any
from weakref import WeakKeyDictionary

from polyhead_client.errors import PolyheadClientError, RequestTimeoutError, ServerUnreachableError
from polyhead_client.request import Deadline

LONGEST_WAIT_S = 0.5  # then a waiting thread looks whether its deadline was cancelled


@dataclass
class _Line:
    """One line: its free turns, and when a call was answered last."""

    turns: Any  # a Queue with an element per free turn, or an asyncio.Semaphore
    answered: float = field(default_factory=time.monotonic)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Notes when a call got an answer, which may be a refusal of the server."""
        try:
            yield
        except (RequestTimeoutError, ServerUnreachableError):
            raise
        except PolyheadClientError:
            self.answered = time.monotonic()
            raise
        self.answered = time.monotonic()

    def patience_s(self, since: float, deadline: Deadline, most: int) -> float:
        """How long a call may go on waiting.

        Raises:
            RequestTimeoutError: no longer.
        """
        left_s = max(since, self.answered) + deadline.timeout_s - time.monotonic()
        if deadline.cancelled or left_s <= 0:
            raise RequestTimeoutError(
                f"all {most} requests of this client stayed without an answer for {deadline.timeout_s:g} s; allow more "
                "time, or raise max_connections"
            )
        return left_s


class ThreadTurns:
    """Turns for threads and gevent's greenlets; each process and each hub has its own line."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: dict[Any, _Line] = {}

    @contextmanager
    def take(self, deadline: Deadline) -> Iterator[None]:
        """Waits for a turn, lets the deadline begin, and gives the turn back at the end."""
        line = self._lines.get(home()) or self._lines.setdefault(home(), self._new_line())
        since = time.monotonic()
        while True:
            try:
                line.turns.get(timeout=min(line.patience_s(since, deadline, self._most), LONGEST_WAIT_S))
                break
            except Empty:
                continue
        try:
            with line.progress():
                deadline.begin()
                yield
        finally:
            line.turns.put(None)

    def _new_line(self) -> _Line:
        turns: Queue[None] = Queue()
        for _ in range(self._most):
            turns.put(None)
        return _Line(turns)


class TaskTurns:
    """Turns for asyncio; each loop has its own line."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()

    @asynccontextmanager
    async def take(self, deadline: Deadline) -> AsyncIterator[None]:
        """Like `ThreadTurns.take`."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop) or self._lines.setdefault(loop, _Line(asyncio.Semaphore(self._most)))
        since = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(line.patience_s(since, deadline, self._most)):
                    await line.turns.acquire()
                break
            except TimeoutError as error:
                if isinstance(error, RequestTimeoutError):
                    raise
        try:
            with line.progress():
                deadline.begin()
                yield
        finally:
            line.turns.release()


def home() -> Any:
    """Where a socket that is opened now may be used again: in this process and, with gevent's sockets, in this hub."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        return os.getpid(), sys.modules["gevent"].get_hub()
    return os.getpid(), None
