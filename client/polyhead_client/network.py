"""How servers are reached: encryption, proxy, and how long a connection may take to be made."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from polyhead_client.errors import UsageError


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust and how to prove who asks; PEM files. Encryption itself comes with ``https://``.

    Attributes:
        ca_file: the certificate authorities that sign servers; the system's if None.
        client_cert: this client's certificate chain, for servers that ask for one.
        client_key: its key, where it is not in the same file.
    """

    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def context(self) -> ssl.SSLContext:
        """The context for HTTP connections.

        Raises:
            UsageError: a file cannot be read or is no PEM.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.client_cert is not None:
                context.load_cert_chain(self.client_cert, self.client_key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"tls: {self} cannot be used ({error})") from error
        return context


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is the header's value where the URL named a user."""

    url: str
    host: str
    port: int
    authorization: str | None

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Reads ``http://user:password@host:port``.

        Raises:
            UsageError: it is not one.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError, TypeError) as error:
            raise UsageError(f"proxy must be a URL such as 'http://proxy:3128' ({error})") from error
        if parts.scheme != "http" or not host:
            raise UsageError("proxy must be a URL such as 'http://proxy:3128'")
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(url, host, port or 3128, authorization)


@dataclass(frozen=True, slots=True)
class Network:
    """What all transports need to know; `max_connections` counts HTTP connections to one replica."""

    tls: Tls | None = None
    proxy: Proxy | None = None
    connect_timeout_s: float = 5.0
    max_connections: int = 64
    user_agent: str = "polyhead-client"
