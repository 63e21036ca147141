"""The server's ports: they are free before a start, they stay ours during a restart, and whose process listens on one.

A port above 1023 belongs to whoever takes it first. Another user's program on it would get callers' texts, or the key
of `polyhead-deploy`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import pwd
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from polyhead.errors import PolyheadError

SHARED = ("http", "grpc")  # the ports that Triton can share with the process that reserves them: --reuse-*-port
RETRY_S = 1.0
_LISTEN = "0A"

log = logging.getLogger("polyhead_serving")


class AddressError(PolyheadError):
    """An address, a port or a key cannot be used."""


@contextmanager
def reserved_ports(address: str, ports: Mapping[str, int]) -> Iterator[None]:
    """Checks all ports, and reserves those of `SHARED` while the block runs: no other user can take them in a restart.

    The kernel lets only processes of the same user share a port, and only if all of them ask for it. A reserved port
    gets no connections.

    Args:
        ports: by the name of the option: http, grpc, metrics, probe.

    Raises:
        AddressError: a port is given twice or is taken. Triton would say so much later.
    """
    seen: dict[int, str] = {}
    for name, port in ports.items():
        flag = f"--{name}-port"
        if port in seen:
            raise AddressError(f"{flag} {port}: {seen[port]} has the same port")
        seen[port] = flag
        try:
            # Triton sets SO_REUSEADDR too: connections that have ended on this port do no harm.
            _bind(address, port, socket.SO_REUSEADDR).close()
        except OSError as error:
            owners = ", ".join(sorted(user_name(uid) for uid in listeners(port)))
            by = f" by {owners}" if owners else ""
            place = f"{address}:{port}"
            raise AddressError(f"{flag} {port}: cannot listen on {place} ({error.strerror}{by})") from error
    shared = [ports[name] for name in SHARED if name in ports]
    ended = threading.Event()
    with ExitStack() as held:
        if left := _reserve(address, shared, held):
            log.warning("ports %s cannot be reserved yet, because connections of another program end on them", left)
            later = threading.Thread(target=_reserve_later, args=(address, left, ended), daemon=True)
            later.start()
            held.callback(later.join)
        held.callback(ended.set)
        yield


def _reserve(address: str, ports: Sequence[int], held: ExitStack) -> list[int]:
    """Reserves ports until `held` ends; returns those that cannot be reserved now."""
    left = []
    for port in ports:
        try:
            held.enter_context(_bind(address, port, socket.SO_REUSEPORT))
        except OSError:
            left.append(port)
    return left


def _reserve_later(address: str, ports: Sequence[int], ended: threading.Event) -> None:
    """Tries again until all ports are reserved. The kernel forgets an ended connection after a minute."""
    with ExitStack() as held:
        while ports and not ended.wait(RETRY_S):
            ports = _reserve(address, ports, held)
        ended.wait()


def check_listener(server: str, repository: Path) -> None:
    """Raises AddressError if a user who is not to be trusted listens at this address of this machine.

    Trusted are root, the user of this process, and the owner of the repository, who decides what is served.

    Args:
        server: ``HOST:PORT``. Another machine's ports cannot be checked.
    """
    # gRPC also knows unix:PATH and schemes such as ipv4:HOST:PORT, which would not be checked.
    address = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w-]+\]|[\w.-]+):([0-9]{1,5})", server, re.ASCII)
    if address is None:
        raise AddressError(f"server {server}: must be HOST:PORT; POLYHEAD_ADMIN_KEY was not sent")
    host, port = address[1].strip("[]"), int(address[2])
    trusted = {0, os.geteuid()}
    with contextlib.suppress(OSError):
        trusted.add(repository.stat().st_uid)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError):
        return  # gRPC says what is wrong with it
    for family, *_, reached in found:
        if not _is_here(family, reached):
            continue
        place = ipaddress.ip_address(str(reached[0]).partition("%")[0])
        if strangers := listeners(port, place) - trusted:
            names = ", ".join(sorted(user_name(uid) for uid in strangers))
            raise AddressError(
                f"server {server}: at {place} listens a process of {names}, who is neither you nor the owner of "
                f"{repository}; POLYHEAD_ADMIN_KEY was not sent"
            )


def listeners(port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None) -> set[int]:
    """The users whose processes listen on that port of this machine: at this address, or at any."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                place, _, local = fields[1].rpartition(":")
                if fields[3] == _LISTEN and int(local, 16) == port:
                    its = _parse_address(place)
                    if address is None or its == address or its.is_unspecified:
                        found.add(int(fields[7]))
    return found


def user_name(uid: int) -> str:
    """A user's name, or ``uid N`` if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _bind(address: str, port: int, option: int) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound


def _is_here(family: int, reached: Any) -> bool:
    """Whether an address is one of this machine's."""
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.bind((reached[0], 0, *reached[2:]))
        except OSError:
            return False
    return True


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel writes it: words of four bytes, each in the machine's own order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address
