"""HTTP for `AsyncClient`: one aiohttp session for each event loop that uses the client."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

from polyhead_client.deadline import Deadline
from polyhead_client.errors import NotConnectedError
from polyhead_client.http_wire import HttpReply, HttpRequest
from polyhead_client.network import Network, Tls
from polyhead_client.replicas import Replica

NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


@dataclass(slots=True)
class _Use:
    """One try: whether its connection had been used before, and whether an answer has begun."""

    kept: bool = False
    answering: bool = False


async def _note_kept(session: aiohttp.ClientSession, context: Any, _: aiohttp.TraceConnectionReuseconnParams) -> None:
    context.trace_request_ctx.kept = True


class HttpSessions:
    """aiohttp's sessions; each belongs to its loop, so that a client may outlive ``asyncio.run``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._context: ssl.SSLContext | None = None
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """Carries one request; what fails in the network comes up as OSError."""
        while True:
            use = _Use()
            try:
                return await self._exchange(replica, request, deadline, use)
            except (
                aiohttp.ClientConnectorError,
                aiohttp.ConnectionTimeoutError,
                aiohttp.ClientHttpProxyError,
            ) as error:
                raise NotConnectedError(str(error) or type(error).__name__) from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
                # The server closed the idle connection just as the request went out: another one takes it.
                if not use.kept or use.answering or deadline.remaining_s() <= 0:
                    raise ConnectionResetError(str(error) or type(error).__name__) from error
            except aiohttp.ClientError as error:
                raise ValueError(str(error) or type(error).__name__) from error

    async def _exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline, use: _Use) -> HttpReply:
        proxy = self._network.proxy
        limits = aiohttp.ClientTimeout(
            total=max(deadline.remaining_s(), 0.001), sock_connect=self._network.connect_timeout_s
        )
        async with self._session().request(
            request.method,
            f"{'https' if replica.secure else 'http'}://{replica.place}{request.path}",
            data=request.body or None,
            headers=request.headers,
            timeout=limits,
            allow_redirects=False,
            ssl=self._encryption() if replica.secure else True,
            proxy=proxy.url if proxy else None,
            trace_request_ctx=use,
        ) as response:
            use.answering = True
            body = await response.read()
            answered = {name.lower(): value for name, value in response.headers.items()}
            return HttpReply(response.status, answered, body)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=self._network.max_connections)
            traces = aiohttp.TraceConfig()
            traces.on_connection_reuseconn.append(_note_kept)
            session = aiohttp.ClientSession(connector=connector, auto_decompress=False, trace_configs=[traces])
            self._sessions[loop] = session
        return session

    def _encryption(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = (self._network.tls or Tls()).context()
        return self._context

    async def close(self) -> None:
        """Closes the running loop's session."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()
