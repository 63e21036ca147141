"""gRPC transport: `GrpcChannels` for `Client`, `AsyncGrpcChannels` for `AsyncClient`.

tritonclient's gRPC clients keep nothing between calls but their channel, which threads and tasks may share. So there is
one per replica and, for asyncio, per loop. gRPC's threads do not survive a fork: create the client in the process that
uses it.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from polyhead_client.replicas import Replica
from polyhead_client.request import GRPC_PACKAGE, LARGEST_ANSWER, Call, Deadline, import_extra
from polyhead_client.settings import Network

LARGEST_MESSAGE = 2**31 - 1
RECONNECT_MS = 2000  # a server that comes back is found within this time; gRPC's default waits grow to two minutes
LEAST_TIMEOUT_S = 0.001


class GrpcChannels:
    """Channels for threads and, with gevent, for greenlets."""

    def __init__(self, network: Network) -> None:
        self._module = import_extra("tritonclient.grpc", GRPC_PACKAGE)
        self._network = network
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        _serve_greenlets()

    def send(self, replica: Replica, call: Call, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Sends one call and returns the answer. Failures raise InferenceServerException."""
        with self._lock:
            client = self._clients.get(replica.address)
            if client is None:
                client = _open_channel(self._module, replica, self._network)
                self._clients[replica.address] = client
        method, arguments = _arguments(call, headers, deadline)
        return getattr(client, method)(**arguments)

    def close(self) -> None:
        """Closes all channels."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


class AsyncGrpcChannels:
    """Channels for asyncio; each belongs to one loop."""

    def __init__(self, network: Network) -> None:
        self._module = import_extra("tritonclient.grpc.aio", GRPC_PACKAGE)
        self._network = network
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Any]] = WeakKeyDictionary()

    async def send(self, replica: Replica, call: Call, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Like `GrpcChannels.send`."""
        clients = self._clients.setdefault(asyncio.get_running_loop(), {})
        if replica.address not in clients:
            clients[replica.address] = _open_channel(self._module, replica, self._network)
        method, arguments = _arguments(call, headers, deadline)
        return await getattr(clients[replica.address], method)(**arguments)

    async def close(self) -> None:
        """Closes the channels of the running loop."""
        for client in self._clients.pop(asyncio.get_running_loop(), {}).values():
            await client.close()


def _open_channel(module: ModuleType, replica: Replica, network: Network) -> Any:
    """tritonclient's client on a new channel."""
    options = [
        ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ("grpc.max_receive_message_length", LARGEST_ANSWER),
        ("grpc.primary_user_agent", network.user_agent),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.enable_retries", 0),  # `polyhead_client.retry` decides about retries
        ("grpc.enable_http_proxy", 0),  # only the proxy of the settings, not the environment's
    ]
    if network.proxy is not None:
        options[-1] = ("grpc.http_proxy", network.proxy.geturl())
    tls = network.tls
    files = {
        "root_certificates": tls and tls.ca_file,
        "certificate_chain": tls and tls.client_cert,
        "private_key": tls and (tls.client_key or tls.client_cert),
    }
    return module.InferenceServerClient(replica.place, ssl=replica.secure, channel_args=options, **files)


def _arguments(call: Call, headers: Mapping[str, str], deadline: Deadline) -> tuple[str, dict[str, Any]]:
    """The method of tritonclient's client, and its arguments."""
    remaining_s = max(deadline.remaining_s(), LEAST_TIMEOUT_S)
    arguments: dict[str, Any] = {
        "model_name": call.model,
        "model_version": call.version,
        "headers": {name.lower(): value for name, value in headers.items() if name.lower() != "user-agent"},
        "client_timeout": remaining_s,
    }
    if call.kind == "ready":
        return "is_model_ready", arguments
    asked = {"inputs": call.inputs, "outputs": call.outputs, "parameters": call.parameters}
    asked |= {"request_id": call.request_id}
    return "infer", {**arguments, **asked, "timeout": max(int(remaining_s * 1e6), 1)}


def _serve_greenlets() -> None:
    # Without this a gRPC call blocks all greenlets. It changes the whole process and cannot be undone.
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        importlib.import_module("grpc.experimental.gevent").init_gevent()
