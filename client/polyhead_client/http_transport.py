"""HTTP transport: `HttpPool` for `Client` on the standard library, `HttpSessions` for `AsyncClient` on aiohttp.

In the pool each connection belongs to one caller at a time. It goes back only after a whole answer, and any failure
closes it, so a late answer is never read as the answer to the next request. A connection stays in the process that
opened it (fork) and, if gevent has patched the sockets, in its hub (native threads).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import select
import socket
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from queue import Empty, LifoQueue
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import aiohttp

from polyhead_client.errors import NotConnectedError, RequestTimeoutError
from polyhead_client.replicas import Replica
from polyhead_client.request import LARGEST_ANSWER, LARGEST_ERROR, Deadline, HttpReply, HttpRequest
from polyhead_client.settings import Network
from polyhead_client.turns import home

PART_BYTES = 2**18
LEAST_TIMEOUT_S = 0.001  # a socket reads a timeout of 0 as "do not wait at all"


class _Answer(io.RawIOBase):
    """The bytes of one answer. Each read ends at the deadline, also if they arrive one by one."""

    def __init__(self, plain: socket.socket, deadline: Deadline) -> None:
        self._plain = plain
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, 65536)  # http.client takes this object for a socket

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        _limit(self._plain, self._deadline)
        return self._plain.recv_into(buffer)


class _Body:
    """A body as it comes: all of an answer, or as much of an error as is read. `left` bytes more are taken."""

    def __init__(self, status: int, length: int | None) -> None:
        self.is_answer = status == HTTPStatus.OK
        self.left = LARGEST_ANSWER if self.is_answer else LARGEST_ERROR
        self.is_short = length is not None and length <= self.left
        self._parts: list[bytes] = []
        if self.is_answer and length is not None and not self.is_short:
            self._refuse()

    def take(self, part: bytes) -> bool:
        """Keeps a part; returns whether more may follow. Raises ValueError if the answer is too large."""
        self._parts.append(part)
        self.left -= len(part)
        if self.is_answer and self.left < 0:
            self._refuse()
        return bool(part) and self.left >= 0

    def whole(self) -> bytes:
        """What was taken."""
        return b"".join(self._parts)

    def _refuse(self) -> None:
        raise ValueError(f"its answer has more than {LARGEST_ANSWER:,} bytes")


def _read_body(response: HTTPResponse) -> bytes:
    body = _Body(response.status, response.length)
    if body.is_short:
        return response.read()
    while body.take(response.read(min(body.left + 1, PART_BYTES))):
        pass
    return body.whole()


def _limit(plain: socket.socket, deadline: Deadline) -> None:
    remaining_s = deadline.remaining_s()
    if remaining_s <= 0:
        raise TimeoutError("the deadline has passed")
    plain.settimeout(max(remaining_s, LEAST_TIMEOUT_S))


class Connection:
    """One connection to a replica, through the proxy if there is one."""

    def __init__(self, replica: Replica, network: Network, deadline: Deadline) -> None:
        self.keeps = False  # whether the server keeps it open for the next request
        context = network.context if replica.secure else None
        host, slash, base = replica.place.partition("/")
        name, port = _split_host(host, 443 if context else 80)
        proxy = network.proxy
        authorization = {}
        if proxy and proxy.username is not None:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            authorization["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        timeout_s = max(min(network.connect_timeout_s, deadline.remaining_s()), LEAST_TIMEOUT_S)
        to = (proxy.hostname or "", proxy.port or 3128) if proxy else (name, port)
        http = HTTPConnection(*to, timeout=timeout_s)
        self._target = slash + base
        self._headers = {"Host": host}
        if proxy and context:
            http.set_tunnel(name, port, headers=authorization)
        elif proxy:
            self._target = f"http://{replica.place}"
            self._headers |= authorization
        try:
            http.connect()
            self._socket: socket.socket = http.sock
            if context:
                self._socket = context.wrap_socket(http.sock, server_hostname=name)
        except OSError as error:
            http.close()
            raise NotConnectedError(str(error) or type(error).__name__) from error

    def exchange(self, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """Sends a request and reads the whole answer."""
        self.keeps = False
        headers = self._headers | dict(request.headers) | {"Content-Length": str(len(request.body))}
        lines = [f"{request.method} {self._target}{request.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        deadline.on_cancel(self.abort)
        try:
            _limit(self._socket, deadline)
            self._socket.sendall(head + request.body)  # together, because two packets would wake the server twice
            answer: Any = _Answer(self._socket, deadline)
            response = HTTPResponse(answer, method=request.method)
            response.begin()
            body = _read_body(response)
        except IncompleteRead as error:
            raise ConnectionResetError("the connection broke inside the answer") from error
        finally:
            deadline.on_cancel(None)
        self.keeps = not response.will_close and response.isclosed()  # a long error is not read to its end
        return HttpReply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def is_dropped(self) -> bool:
        """Whether the server has closed it, or has sent bytes without a request."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        return bool(select.select([self._socket], [], [], 0)[0])

    def abort(self) -> None:
        """Wakes the thread that waits on it; called from another thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection."""
        self.keeps = False
        self._socket.close()


class HttpPool:
    """Connections by replica and home (see `polyhead_client.turns.home`); safe for threads and gevent's greenlets.

    A queue has a slot per allowed connection, with an idle connection or None. A caller gives its slot back.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._slots: dict[tuple[str, Any], LifoQueue[Connection | None]] = {}
        self._closed = False

    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """Sends one request and returns the answer. Network failures raise OSError or HTTPException."""
        key = (replica.address, home())
        slots = self._slots.get(key) or self._slots.setdefault(key, self._new_slots())
        try:
            connection = slots.get(timeout=max(deadline.remaining_s(), LEAST_TIMEOUT_S))
        except Empty as error:
            raise RequestTimeoutError(
                f"{replica.address}: all {self._network.max_connections} connections stayed in use for "
                f"{deadline.timeout_s:g} s; allow more time, or raise max_connections",
                replica=replica.address,
            ) from error
        try:
            # A connection that breaks now is not replaced here: the request may have ended the server, and
            # `polyhead_client.retry` repeats such a request with care.
            if connection is not None and connection.is_dropped():
                connection.close()
                connection = None
            if connection is None:
                connection = Connection(replica, self._network, deadline)
            return connection.exchange(request, deadline)
        finally:
            if connection is not None and not connection.keeps:
                connection.close()
                connection = None
            slots.put(connection)
            if self._closed:
                _close_idle(slots)

    def _new_slots(self) -> LifoQueue[Connection | None]:
        slots: LifoQueue[Connection | None] = LifoQueue()
        for _ in range(self._network.max_connections):
            slots.put(None)
        return slots

    def close(self) -> None:
        """Closes idle connections now, and the others when their answer has come."""
        self._closed = True
        for (_, place), slots in list(self._slots.items()):
            if place == home():
                _close_idle(slots)


def _close_idle(slots: LifoQueue[Connection | None]) -> None:
    idle = []
    with contextlib.suppress(Empty):
        while True:
            idle.append(slots.get_nowait())
    for connection in idle:
        if connection is not None:
            connection.close()
        slots.put(None)


def _split_host(host: str, default_port: int) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, ""
    return name.strip("[]"), int(port) if port else default_port


async def _read_async(response: aiohttp.ClientResponse) -> bytes:
    body = _Body(response.status, response.content_length)
    if body.is_short:
        return await response.read()
    async for part in response.content.iter_chunked(PART_BYTES):
        if not body.take(part):
            break
    return body.whole()


class HttpSessions:
    """One aiohttp session per event loop, so that a client may outlive ``asyncio.run``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """Sends one request and returns the answer. Network failures raise OSError."""
        for _ in range(2):  # lets the loop see which idle connections the server has closed, so that none is used
            await asyncio.sleep(0)
        try:
            return await self._exchange(replica, request, deadline)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
            raise NotConnectedError(str(error) or type(error).__name__) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
            raise ConnectionResetError(str(error) or type(error).__name__) from error
        except aiohttp.ClientError as error:
            raise ValueError(str(error) or type(error).__name__) from error

    async def _exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        proxy = self._network.proxy
        limits = aiohttp.ClientTimeout(
            total=max(deadline.remaining_s(), LEAST_TIMEOUT_S), sock_connect=self._network.connect_timeout_s
        )
        async with self._session().request(
            request.method,
            f"{'https' if replica.secure else 'http'}://{replica.place}{request.path}",
            data=request.body or None,
            headers=request.headers,
            timeout=limits,
            allow_redirects=False,
            ssl=self._network.context or True,
            proxy=proxy.geturl() if proxy else None,
        ) as response:
            body = await _read_async(response)
            answered = {name.lower(): value for name, value in response.headers.items()}
            return HttpReply(response.status, answered, body)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=self._network.max_connections)
            session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
            self._sessions[loop] = session
        return session

    async def close(self) -> None:
        """Closes the running loop's session."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()
