"""Exactly one response per request of one call of `execute`: returned by it, or sent later by another thread.

A request without a response hangs its client. A request with two responses kills the server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar


class PendingRequest(Protocol):
    """What `Responses` needs of a request.

    Attributes:
        position: its place in the call of `execute`.
        source: Triton's request; None once there is a sender.
        sender: sends its response if `execute` has returned without it; None before.
    """

    position: int
    source: Any
    sender: Any


R = TypeVar("R", bound=PendingRequest)


class Responses(Generic[R]):
    """The responses to the requests of one call of `execute`.

    Args:
        count: how many requests there are.
        respond: builds the response to a request whose scores are there; never raises.
        send: lets another thread send the response to such a request.
        fail: logs an error, and builds the response to a request that failed for a reason that only the log tells.
    """

    def __init__(
        self,
        count: int,
        respond: Callable[[R], Any],
        send: Callable[[R], None],
        fail: Callable[[str], Any],
    ) -> None:
        self._positions = range(count)
        self._respond = respond
        self._fail = fail
        self._send = send
        self._responses: dict[int, Any] = {}
        self._queued: dict[int, R] = {}
        self._finished: list[R] = []
        self._changed = threading.Condition()  # guards what follows: which thread owes the response
        self._has_returned = False

    def put(self, position: int, response: Any) -> None:
        """Keeps the response to the request at this position."""
        self._responses[position] = response

    def queued(self, request: R) -> None:
        """From now on the scheduler finishes this request."""
        self._queued[request.position] = request

    def withdraw(self, request: R) -> None:
        """The scheduler has not taken this request, or it must not finish it."""
        with self._changed:
            self._queued.pop(request.position, None)
            self._finished = [other for other in self._finished if other is not request]

    def fail_rest(self, reason: str) -> None:
        """Answers every request that has no response and is not queued."""
        for position in set(self._positions) - self._responses.keys() - self._queued.keys():
            self.put(position, self._fail(reason))

    def finish(self, request: R) -> None:
        """Takes a request whose scores are there, in the scheduler's thread."""
        with self._changed:
            if request.position not in self._queued:
                return
            if not self._has_returned:
                self._finished.append(request)
                if len(self._finished) >= len(self._queued):
                    self._changed.notify()
                return
        if request.sender is not None:
            self._send(request)

    def collect(self, timeout_s: float) -> list[Any]:
        """Waits for the queued requests; returns a response per request, or None for one that is sent later.

        All responses are built at the end, because Python code that runs beside the engine's slows it down.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._finished) == len(self._queued), timeout_s)
            self._has_returned = True
            finished = set(self._finished)
            for request in self._queued.values():
                if request not in finished:
                    self._leave(request)
        for request in self._finished:
            self.put(request.position, self._respond(request))
        return [self._responses.get(position) for position in self._positions]

    def _leave(self, request: R) -> None:
        try:
            request.sender = request.source.get_response_sender()
            request.source = None  # it holds shared memory
        except Exception as error:
            self.put(request.position, self._fail(f"a request has no response sender: {error!r}"))
