"""Reaches into another process's sockets, so that a server which waits for its clients to leave can leave itself.

Triton closes no keep-alive connection of its own accord: at SIGTERM it waits for all of them, breaks those that are
left when its patience ends, and takes new ones only to reset them. Here new clients are kept out before, and each
connection ends as soon as it is answered.

Both calls do nothing where the kernel forbids to reach into the process (pidfd_getfd needs ptrace's permission).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_PIDFD_GETFD = 438  # the same on all architectures
_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF's "return 0"
_ESTABLISHED, _TIME_WAIT, _LISTEN = "01", "06", "0A"
# Where struct tcp_info has when data was last sent and received, in milliseconds ago, and how many segments of it.
_TCP_INFO_BYTES, _LAST_SENT, _LAST_RECEIVED, _SEGMENTS_IN, _SEGMENTS_OUT = 160, 44, 52, 152, 156
_CLOCK_MS = 500  # the kernel's clock ticks in milliseconds: what came in one tick is taken for idle after that long
_libc = ctypes.CDLL(None, use_errno=True)


def keep_out(pid: int, port: int) -> int:
    """Lets the kernel drop what arrives for the process's listening sockets on that port; gives how many there are.

    New clients try again by themselves until the port is closed, and are refused then: none gets halfway. (A listener
    that is shut down instead would refuse at once, but Triton's would spin on it.)
    """
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    header = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    closed = 0
    for listener in _sockets(pid, port, _LISTEN):
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
            closed += 1
    return closed


def has_clients(pid: int, *ports: int) -> bool:
    """Whether anybody is, or is just being, connected to one of these local ports; needs no permission."""
    return any(port in ports and state not in (_LISTEN, _TIME_WAIT) for _, state, port in _entries(pid))


def close_idle_connections(pid: int, port: int) -> int:
    """Shuts down the reading side of connections to that local port whose last word was the process's own.

    What a client has sent is read and answered still; then the process finds the connection at its end.

    Returns:
        How many were shut down.
    """
    closed = 0
    for connection in _sockets(pid, port, _ESTABLISHED):
        with contextlib.suppress(OSError):  # it has just ended
            if _is_idle(connection):
                connection.shutdown(socket.SHUT_RD)
                closed += 1
    return closed


def _is_idle(connection: socket.socket) -> bool:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)

    def field(offset: int) -> int:
        return int(struct.unpack_from("I", info, offset)[0])

    if field(_SEGMENTS_IN) and not field(_SEGMENTS_OUT):  # its first request
        return False
    sent_ms, received_ms = field(_LAST_SENT), field(_LAST_RECEIVED)
    # A request under way, or in the making, is newer than the last answer.
    return sent_ms < received_ms or sent_ms == received_ms > _CLOCK_MS


def _sockets(pid: int, port: int, state: str) -> Iterator[socket.socket]:
    """Duplicates of the process's sockets in that state; what is done to them is done to its own."""
    names = _names(pid, port, state)
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                if _name(link) in names:
                    number = _libc.syscall(_PIDFD_GETFD, process, int(link.name), 0)
                    if number >= 0:
                        with socket.socket(fileno=number) as duplicate:
                            yield duplicate
        finally:
            os.close(process)


def _name(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # it has just been closed
        return ""


def _names(pid: int, port: int, state: str) -> set[str]:
    """The sockets in that state, as /proc/PID/fd names them."""
    return {f"socket:[{inode}]" for inode, its, local in _entries(pid) if (its, local) == (state, port)}


def _entries(pid: int) -> Iterator[tuple[str, str, int]]:
    """Inode, state and local port of each TCP socket of the process's network."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                yield fields[9], fields[3], int(fields[1].rpartition(":")[2], 16)
