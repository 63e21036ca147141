"""The servers of one client: which is asked next, and which is set aside for now."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from polyhead_client.errors import (
    BadResponseError,
    PolyheadClientError,
    RequestTimeoutError,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
)
from polyhead_client.locks import brief_lock
from polyhead_client.retry import is_fallen

FIRST_ASIDE_S = 0.5
LONGEST_ASIDE_S = 30.0
FAILING = (ServerUnreachableError, ServerFailedError, RequestTimeoutError, BadResponseError)
FAILURES_ASIDE = 3  # failures in a row that set a replica aside; a lost connection or model process does at once


@dataclass(slots=True)
class Replica:
    """One server.

    Attributes:
        address: as the user gave it.
        place: ``host:port`` with a path where there is one, without scheme.
        secure: whether the connection is encrypted.
        outstanding: requests under way.
        failures: in a row, up to now.
        aside_until: monotonic time before which it is asked only if all others are aside too.
    """

    address: str
    place: str
    secure: bool
    outstanding: int = 0
    failures: int = 0
    aside_until: float = 0.0


class Replicas:
    """Least outstanding requests among those that are not set aside; safe from threads."""

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
        """Chooses a replica for a request and counts it there; `give_back` must follow.

        One that comes back from aside gets a single request until that is answered. If all are aside, the one whose
        time comes first is asked: a client never refuses by itself.
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
        """Counts a request at a replica that was chosen otherwise; `give_back` must follow."""
        with self._lock:
            replica.outstanding += 1

    def has_other(self, tried: Collection[str]) -> bool:
        """Whether a replica is left that was not tried and is not set aside."""
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
                replica.failures = max(replica.failures + 1, FAILURES_ASIDE if _is_lost(error) else 0)
                if self._on_trial(replica) and replica.aside_until <= now:
                    doubled = FIRST_ASIDE_S * 2 ** min(replica.failures - FAILURES_ASIDE, 10)
                    replica.aside_until = now + min(doubled, LONGEST_ASIDE_S) * random.uniform(0.5, 1.0)
            elif answered:
                replica.failures, replica.aside_until = 0, 0.0

    def _on_trial(self, replica: Replica) -> bool:
        return replica.failures >= FAILURES_ASIDE


def _is_lost(error: PolyheadClientError) -> bool:
    return isinstance(error, ServerUnreachableError) or is_fallen(error)


def parse_address(address: str) -> Replica:
    """Reads ``host:port``, with or without a scheme.

    Raises:
        UsageError: it is not an address.
    """
    if not isinstance(address, str):
        raise UsageError(f"servers: an address must be a str such as 'localhost:8000', got {type(address).__name__}")
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
