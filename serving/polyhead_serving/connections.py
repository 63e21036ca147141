"""Drains another process's sockets, so that tritonserver can end without breaking a request.

At SIGTERM Triton keeps idle keep-alive connections open, waits for all of them, and breaks the rest when its exit
timeout ends. These functions stop new connections beforehand and close each old one as soon as it is answered. They
need pidfd_getfd, which needs the permission for ptrace. If the kernel forbids it, they do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_PIDFD_GETFD = 438  # the same on all architectures
_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF's "return 0"
# As in the kernel's net/tcp_states.h.
_STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
           "LAST_ACK", "LISTEN", "CLOSING")  # fmt: skip
# Offsets in struct tcp_info: milliseconds since data was last sent and received, and the data segments in and out.
_TCP_INFO_BYTES, _LAST_SENT, _LAST_RECEIVED, _SEGMENTS_IN, _SEGMENTS_OUT = 160, 44, 52, 152, 156
_CLOCK_MS = 500  # the kernel counts in ticks: data sent and received in the same tick counts as idle after this long
_libc = ctypes.CDLL(None, use_errno=True)


def block_new_connections(pid: int, port: int) -> int:
    """Makes the kernel drop what arrives for the process's listening sockets on that port.

    New clients retry by themselves until the port is closed; then they are refused. No connection is half accepted.
    (Shutting the listener down would refuse at once, but Triton's event loop would spin on it.)

    Returns:
        The number of sockets blocked; 0 means that the kernel does not allow it.
    """
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    header = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    blocked = 0
    for listener in _sockets(pid, port, "LISTEN"):
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
            blocked += 1
    return blocked


def client_states(pid: int, *ports: int) -> Counter[str]:
    """How many clients are connected, or just connecting, to these local ports, by TCP state. Needs no permission."""
    return Counter(state for _, state, port in _entries(pid) if port in ports and state not in ("LISTEN", "TIME_WAIT"))


def close_idle_connections(pid: int, port: int) -> int:
    """Shuts down the reading side of connections to that local port on which the process was the last to send.

    The process still reads and answers what the client has already sent. Then it sees the end of the connection.

    Returns:
        The number of connections shut down.
    """
    closed = 0
    for connection in _sockets(pid, port, "ESTABLISHED"):
        with contextlib.suppress(OSError):  # it has just ended
            if _is_idle(connection):
                connection.shutdown(socket.SHUT_RD)
                closed += 1
    return closed


def _is_idle(connection: socket.socket) -> bool:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    offsets = (_LAST_SENT, _LAST_RECEIVED, _SEGMENTS_IN, _SEGMENTS_OUT)
    sent_ms, received_ms, segments_in, segments_out = (
        int(struct.unpack_from("I", info, place)[0]) for place in offsets
    )
    if segments_in and not segments_out:  # the first request is still unanswered
        return False
    # An unanswered request, complete or not, is newer than the last answer.
    return sent_ms < received_ms or sent_ms == received_ms > _CLOCK_MS


def _sockets(pid: int, port: int, state: str) -> Iterator[socket.socket]:
    """Duplicates of the process's sockets in that state. A change to a duplicate changes the original."""
    # /proc/PID/fd uses these names.
    names = {f"socket:[{inode}]" for inode, its, local in _entries(pid) if (its, local) == (state, port)}
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # it has just been closed
                    if str(link.readlink()) not in names:
                        continue
                    number = _libc.syscall(_PIDFD_GETFD, process, int(link.name), 0)
                    if number >= 0:
                        with socket.socket(fileno=number) as duplicate:
                            yield duplicate
        finally:
            os.close(process)


def _entries(pid: int) -> Iterator[tuple[str, str, int]]:
    """Inode, state and local port of each TCP socket in the process's network namespace."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                yield fields[9], _STATES[int(fields[3], 16)], int(fields[1].rpartition(":")[2], 16)
