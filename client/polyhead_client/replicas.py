"""The servers of one client: addresses, which one is asked next, and which ones are skipped for now."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from polyhead_client.errors import (
    BadResponseError,
    PolyheadClientError,
    RequestTimeoutError,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
    may_have_crashed_server,
)

FIRST_ASIDE_S = 0.5
LONGEST_ASIDE_S = 30.0
FAILING = (ServerUnreachableError, ServerFailedError, RequestTimeoutError, BadResponseError)
FAILURES_ASIDE = 3  # failures in a row that set a replica aside; a lost connection or model process does so at once
HANGS_AFTER_S = 1.0  # a replica that leaves a request without an answer for so long is set aside at once too


@dataclass(slots=True)
class Replica:
    """One server.

    Attributes:
        address: the address as the user wrote it.
        place: ``host:port``, then the path if there is one, without the scheme.
        secure: whether the connection is encrypted.
        outstanding: requests under way.
        failures: failures in a row, until now.
        aside_until: monotonic time. Before it this replica is asked only if all others are set aside too.
    """

    address: str
    place: str
    secure: bool
    outstanding: int = 0
    failures: int = 0
    aside_until: float = 0.0


class Replicas:
    """Chooses the replica with the fewest requests under way, among those not set aside; safe for threads."""

    def __init__(self, servers: str | Sequence[str]) -> None:
        addresses = [servers] if isinstance(servers, str) else servers
        if not isinstance(addresses, list | tuple) or not addresses:
            raise UsageError(f"servers must be 'host:port' or a list of them, got {servers!r}")
        self.all = [parse_address(address) for address in addresses]
        places = [replica.place for replica in self.all]
        if len(set(places)) != len(places):
            raise UsageError(f"servers must differ from each other, got {list(addresses)}")
        self._lock = brief_lock()
        self._turn = 0

    def take(self, tried: Collection[str] = ()) -> Replica:
        """Chooses a replica for a request and counts the request; `give_back` must follow.

        A replica whose time aside has ended gets one request until that is answered. If all replicas are set aside, the
        one whose time ends first is asked, because a client never refuses a request by itself.
        """
        with self._lock:
            now = time.monotonic()
            self._turn += 1
            count = len(self.all)
            order = [self.all[(self._turn + step) % count] for step in range(count)]
            free = [one for one in order if one.address not in tried] or order
            open_ = [one for one in free if one.aside_until <= now and not (self._on_trial(one) and one.outstanding)]
            if open_:
                chosen = min(open_, key=lambda one: one.outstanding)
            else:
                chosen = min(free, key=lambda one: (one.aside_until, one.outstanding))
            chosen.outstanding += 1
            return chosen

    def enter(self, replica: Replica) -> None:
        """Counts a request at a replica that the caller chose; `give_back` must follow."""
        with self._lock:
            replica.outstanding += 1

    def has_other(self, tried: Collection[str]) -> bool:
        """Whether there is a replica that was not tried and is not set aside."""
        with self._lock:
            now = time.monotonic()
            return any(one.address not in tried and one.aside_until <= now for one in self.all)

    def give_back(self, replica: Replica, error: PolyheadClientError | None, answered: bool) -> None:
        """Counts a request as ended: answered, failed with `error`, or given up by the caller (neither)."""
        with self._lock:
            replica.outstanding -= 1
            now = time.monotonic()
            if isinstance(error, ServerOverloadedError):
                if error.retry_after_s:
                    replica.aside_until = max(replica.aside_until, now + min(error.retry_after_s, LONGEST_ASIDE_S))
            elif isinstance(error, FAILING):
                if isinstance(error, RequestTimeoutError):
                    lost = error.waited_s >= HANGS_AFTER_S
                else:
                    lost = isinstance(error, ServerUnreachableError) or may_have_crashed_server(error)
                replica.failures = max(replica.failures + 1, FAILURES_ASIDE if lost else 0)
                if self._on_trial(replica) and replica.aside_until <= now:
                    doubled = FIRST_ASIDE_S * 2 ** min(replica.failures - FAILURES_ASIDE, 10)
                    replica.aside_until = now + min(doubled, LONGEST_ASIDE_S) * random.uniform(0.5, 1.0)
            elif answered:
                replica.failures, replica.aside_until = 0, 0.0

    def _on_trial(self, replica: Replica) -> bool:
        return replica.failures >= FAILURES_ASIDE


def parse_address(address: str) -> Replica:
    """Reads ``host:port``, with or without a scheme.

    Raises:
        UsageError: it is not an address.
    """
    if not isinstance(address, str):
        raise UsageError(f"servers: an address must be a str such as '127.0.0.1:8000', got {type(address).__name__}")
    scheme, separator, place = address.partition("://")
    if not separator:
        scheme, place = "http", address
    place = place.rstrip("/")
    spaced = any(character.isspace() for character in place)
    if scheme not in ("http", "https", "grpc", "grpcs") or not place or spaced or "@" in place:
        raise UsageError(
            f"servers: a url must be 'host:port', 'http://host:port' or 'https://host:port', got {address!r}"
        )
    host, colon, port = place.partition("/")[0].rpartition(":")
    if colon and not host.endswith("]") and ":" in host:
        raise UsageError(f"servers: write an IPv6 address in brackets, such as '[::1]:8000', got {address!r}")
    if colon and not port.endswith("]") and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"servers: the port must be 1 to 65535, got {address!r}")
    return Replica(address, place, scheme in ("https", "grpcs"))


def brief_lock() -> AbstractContextManager[bool]:
    """A lock of the operating system's threads, also where gevent has patched ``threading``.

    It is only for a few lines that neither wait nor switch greenlets. gevent's own lock may forget to wake a waiter in
    another native thread's hub: a test hung in one of 40 runs. The original lock cannot do that, and greenlets of one
    thread never contend for it, because no greenlet is switched out while it holds the lock.
    """
    monkey = sys.modules.get("gevent.monkey")
    make = monkey.get_original("threading", "Lock") if monkey is not None else threading.Lock
    lock: AbstractContextManager[bool] = make()
    return lock
