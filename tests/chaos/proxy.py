"""The proxy of deploy/nginx in front of a server, with a rate limit that no test reaches."""

from __future__ import annotations

from loadtest.local_server import LocalServer
from polyhead_client import Client, Tls
from tests.chaos.attack import Door
from tests.e2e.proxied import KEY, Proxied


def through_proxy(served: LocalServer, **settings: str) -> Proxied:
    """The proxy with a higher rate: at the default, 24,000 requests of one key would take two minutes."""
    places = {"INFERENCE": served.url("http"), "METRICS": served.url("metrics"), "PROBE": served.url("probe")}
    return Proxied(**(places | {"RATE": "100000r/s", "BURST": "10000", "CLIENT_TIMEOUT": "2s"} | settings))


def client_of(proxied: Proxied) -> Client:
    """The client, over TLS and with the key."""
    return Client(f"https://localhost:{proxied.port}", api_key=KEY, tls=Tls(ca_file=proxied.certificate))


def door_of(proxied: Proxied) -> Door:
    """The same for raw requests."""
    headers = (("Host", f"localhost:{proxied.port}"), ("Authorization", f"Bearer {KEY}"))
    return Door("localhost", proxied.port, headers, proxied.trust)
