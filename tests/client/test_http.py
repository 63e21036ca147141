"""The HTTP transports over a real port: connections, deadlines, encryption, proxies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polyhead_client import (
    AsyncClient,
    BadResponseError,
    Client,
    NotReadyError,
    RequestTimeoutError,
    RetryPolicy,
    ServerFailedError,
    ServerUnreachableError,
    Tls,
    http_transport,
)
from polyhead_client.testing import Failure
from tests.client.fake_triton import ANSWER, FakeTriton
from tests.client.surface import Ask

ONCE = RetryPolicy(max_attempts=1)


def numbered(text: str) -> dict[str, Any]:
    """An answer that shows which text it belongs to."""
    return {**ANSWER, "token_count": int(text)}


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def raw_server(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that passes every connection to a function."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def work(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client may hang up
            handle(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=work, args=(connection,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(5)


def pump(source: socket.socket, target: socket.socket) -> None:
    """Carries bytes until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def read_message(source: socket.socket) -> bytes:
    """Reads a request or an answer with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = source.recv(65536)
        if not received:
            return b""
        data += received
    head = data.partition(b"\r\n\r\n")[0]
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    while len(data) < len(head) + 4 + length:
        data += source.recv(65536)
    return data


def test_address_with_scheme(ask: Ask, fake: FakeTriton) -> None:
    """An address may begin with http:// and end with a slash."""
    with ask(None, f"http://{fake.url}/") as client:
        assert client.is_ready()


def test_connections_are_kept(fake: FakeTriton) -> None:
    """Requests that follow each other use one connection, lists and streams too."""
    opened = []

    def forward(connection: socket.socket) -> None:
        opened.append(connection)
        host, port = fake.url.split(":")
        with socket.create_connection((host, int(port))) as server:
            back = threading.Thread(target=pump, args=(server, connection), daemon=True)
            back.start()
            pump(connection, server)
            back.join()

    with raw_server(forward) as url:
        with Client(url, batch_size=2) as client:
            for _ in range(5):
                client.classify(["a"] * 2)
            client.scores(["a"])
            assert len(opened) == 1
            client.classify(["a"] * 20)  # its batches go out side by side
            client.classify(["a"] * 20)
        assert len(opened) <= 4


def test_late_answer_is_never_read_as_the_next(ask: Ask, fake: FakeTriton) -> None:
    """After a timeout the next request gets its own answer, not the late one."""
    fake.answer = numbered
    with ask(None, fake.url) as client:
        client.classify("1")
        fake.delay_s = 1.0
        with pytest.raises(RequestTimeoutError, match=r"within 0\.6 s"):
            client.classify("2", timeout_s=0.6)
        fake.delay_s = 0.0
        assert client.classify("3").token_count == 3


def test_idle_connection_that_was_closed_is_reopened(ask: Ask, fake: FakeTriton) -> None:
    """A connection that the server closed while idle is replaced without a retry."""
    fake.server.keep_alive = False
    with ask(None, fake.url, retry=ONCE) as client:
        for _ in range(3):
            assert client.classify("text").error is None
            time.sleep(0.05)


def test_nobody_listens(ask: Ask) -> None:
    """Without a server the error is a ConnectionError that names the address, and the client is not ready."""
    url = f"127.0.0.1:{free_port()}"
    with ask(None, url, timeout_s=2) as client:
        with pytest.raises(ServerUnreachableError, match=url) as caught:
            client.classify("text")
        assert caught.value.replica == url
        assert caught.value.model == "gpt2_classifier"
        assert isinstance(caught.value, ConnectionError)
        assert not client.is_ready()
        with pytest.raises(NotReadyError, match="no connection"):
            client.wait_until_ready(0.3)


def test_unknown_host(ask: Ask) -> None:
    """A name that does not resolve is an unreachable server."""
    with ask(None, "no-such-host.invalid:8000", retry=ONCE) as client, pytest.raises(ServerUnreachableError):
        client.classify("text")


def test_dripping_answer_ends_at_the_deadline(ask: Ask) -> None:
    """A server that sends single bytes cannot extend the deadline."""

    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b" " * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    began = time.monotonic()
    with raw_server(drip) as url, ask(None, url) as client, pytest.raises(RequestTimeoutError):
        client.classify("text", timeout_s=0.7)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", BadResponseError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", BadResponseError),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", Exception),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", ServerUnreachableError),
        (b"", ServerUnreachableError),
    ],
)
def test_foreign_servers(ask: Ask, answer: bytes, kind: type[Exception]) -> None:
    """Another protocol, another service, a redirect, half an answer and no answer are errors of the tree."""

    def say(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with raw_server(say) as url, ask(None, url, retry=ONCE, timeout_s=5) as client, pytest.raises(kind) as caught:
        client.classify("text")
    assert caught.value.replica == url  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 10001\r\n\r\n",
        b"Content-Length: 99999999999999999999\r\n\r\n",  # no size that a machine has
        b"Transfer-Encoding: chunked\r\n\r\n2711\r\n",
        b"\r\n",
    ],
)
def test_an_endless_answer_is_not_read(ask: Ask, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server cannot fill the memory of its clients."""
    monkeypatch.setattr(http_transport, "LARGEST_ANSWER", 10_000)

    def say(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b" " * 10_001)
        connection.recv(65536)  # the client hangs up

    with raw_server(say) as url, ask(None, url, retry=ONCE, timeout_s=5) as client, pytest.raises(BadResponseError):
        client.classify("text")


def test_of_an_endless_error_the_beginning_is_read(ask: Ask, fake: FakeTriton) -> None:
    """It is told, and the next request gets its own answer."""
    body = b"no! " * 100_000

    def say(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1) + body)

    with raw_server(say) as url, ask(None, url, retry=ONCE, timeout_s=5) as client:
        for _ in range(2):
            with pytest.raises(ServerFailedError, match="no! no! no!"):
                client.classify("text")


def test_threads_hammer_one_client(fake: FakeTriton) -> None:
    """With more threads than connections on one client, every text gets its own answer."""
    fake.answer = numbered
    wrong: list[object] = []

    def work(client: Client, first: int) -> None:
        try:
            for number in range(first, first + 40):
                got = [one.token_count for one in client.classify([str(number), str(number + 1)])]
                if got != [number, number + 1]:
                    wrong.append(got)
        except Exception as error:
            wrong.append(error)

    with Client(fake.url, max_connections=4) as client:
        threads = [threading.Thread(target=work, args=(client, 1000 * number)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_tasks_hammer_one_client(fake: FakeTriton) -> None:
    """With many tasks on one client, some of them cancelled, every text gets its own answer."""
    fake.answer = numbered

    async def ask(client: AsyncClient, number: int) -> None:
        if number % 10 == 7:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.classify(str(number)), 0.0001)
            return
        got = [one.token_count for one in await client.classify([str(number), str(number + 1)])]
        assert got == [number, number + 1]

    async def run() -> None:
        async with AsyncClient(fake.url, max_connections=4) as client:
            await asyncio.gather(*(ask(client, number) for number in range(300)))

    asyncio.run(run())


def test_async_client_outlives_its_loop(fake: FakeTriton) -> None:
    """One client may be used by several loops, one after the other."""
    client = AsyncClient(fake.url)

    async def run() -> None:
        assert (await client.classify("text")).error is None
        await client._transport.close()

    asyncio.run(run())
    asyncio.run(run())


GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys, time
import gevent
from gevent.threadpool import ThreadPool
from polyhead_client import Client, RequestTimeoutError

url, slow = sys.argv[1:]
client = Client(url, max_connections=5)
def work(first):
    for number in range(first, first + 20):
        got = [one.token_count for one in client.classify([str(number), str(number + 1)])]
        assert got == [number, number + 1], got
def cancelled():
    with gevent.Timeout(0.001, False):
        client.classify("1")
jobs = [gevent.spawn(work, 1000 * number) for number in range(30)] + [gevent.spawn(cancelled) for _ in range(10)]
gevent.joinall(jobs, raise_error=True)
counts = [one.token_count for one in client.stream(map(str, range(500)), batch_size=7, concurrency=6)]
assert counts == list(range(500))
pool = ThreadPool(3)  # native threads, each with a hub of its own
for job in [pool.spawn(work, 50) for _ in range(6)]:
    job.get()
pool.kill()

ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.01)
ticker = gevent.spawn(tick)
lazy = Client(slow)
began = time.monotonic()
waits = [gevent.spawn(lazy.classify, "text") for _ in range(10)]
gevent.joinall(waits, raise_error=True)
assert time.monotonic() - began < 2.5, "greenlets waited for each other"
assert len(ticks) > 20, "a request blocked the hub"
ticker.kill()
client.close()
lazy.close()
print("all right")
"""


def test_greenlets_hammer_one_client(fake: FakeTriton) -> None:
    """Under gevent, greenlets and native threads share a client without blocking the hub or mixing answers."""
    fake.answer = numbered
    from tests.client.fake_triton import fake_server

    slow = fake_server(failure=Failure(hang_s=0.5))
    with slow.serve() as slow_url:
        command = [sys.executable, "-W", "ignore", "-c", GEVENT, fake.url, slow_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "all right\n", done.stderr


FORK = """
import os, sys
from polyhead_client import Client
client = Client(sys.argv[1])
assert client.classify("1").token_count == 1
children = []
for number in range(2, 6):
    pid = os.fork()
    if pid == 0:
        right = all(client.classify(str(number)).token_count == number for _ in range(30))
        os._exit(0 if right else 1)
    children.append(pid)
assert all(client.classify("1").token_count == 1 for _ in range(30))
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_processes_share_no_connection(fake: FakeTriton) -> None:
    """After a fork, child processes use their own connections."""
    fake.answer = numbered
    command = [sys.executable, "-W", "ignore", "-c", FORK, fake.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_connections_run_out(fake: FakeTriton) -> None:
    """If no connection is free before the deadline, the error says so."""
    fake.delay_s = 1.5
    with Client(fake.url, max_connections=1) as client:
        first = threading.Thread(target=client.classify, args=("text",))
        first.start()
        time.sleep(0.2)
        with pytest.raises(RequestTimeoutError, match="raise max_connections"):
            client.classify("text", timeout_s=0.3)
        first.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=polyhead"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@contextmanager
def encrypted(certificate: Path, target: str, *, ask_client: bool = False) -> Iterator[str]:
    """A TLS server in front of another server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate)

    def serve(connection: socket.socket) -> None:
        host, port = target.split(":")
        with (
            context.wrap_socket(connection, server_side=True) as inner,
            socket.create_connection((host, int(port))) as server,
        ):
            while request := read_message(inner):
                server.sendall(request)
                inner.sendall(read_message(server))

    with raw_server(serve) as url:
        yield url


def test_tls(ask: Ask, fake: FakeTriton, certificate: Path) -> None:
    """https:// encrypts and trusts the given authority; without it a self-signed server is refused."""
    with encrypted(certificate, fake.url) as url:
        with ask(None, f"https://{url}", tls=Tls(ca_file=str(certificate))) as client:
            assert client.classify("text").error is None
            assert client.classify("text").error is None
        with (
            ask(None, f"https://{url}", retry=ONCE) as client,
            pytest.raises(ServerUnreachableError, match="certificate"),
        ):
            client.classify("text")


def test_client_certificate(ask: Ask, fake: FakeTriton, certificate: Path) -> None:
    """A server that asks for a client certificate gets it."""
    with encrypted(certificate, fake.url, ask_client=True) as url:
        tls = Tls(ca_file=str(certificate), client_cert=str(certificate))
        with ask(None, f"https://{url}", tls=tls) as client:
            assert client.classify("text").error is None
        with (
            ask(None, f"https://{url}", tls=Tls(ca_file=str(certificate)), retry=ONCE) as client,
            pytest.raises(ServerUnreachableError),
        ):
            client.classify("text")


@contextmanager
def proxy(heads: list[bytes]) -> Iterator[str]:
    """A simple HTTP proxy for tunnels and plain requests; `heads` gets the request heads."""

    def serve(connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return
            head += data
        heads.append(head)
        method, target, _ = head.split(b" ", 2)
        place = target if method == b"CONNECT" else target.split(b"/")[2]
        host, port = place.decode().split(":")
        with socket.create_connection((host, int(port))) as server:
            if method == b"CONNECT":
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                server.sendall(head.replace(b"http://" + place, b"", 1))
            back = threading.Thread(target=pump, args=(server, connection), daemon=True)
            back.start()
            pump(connection, server)
            back.join()

    with raw_server(serve) as url:
        yield url


def test_proxy(ask: Ask, fake: FakeTriton) -> None:
    """Plain requests go through the proxy, with its user's name and password."""
    heads: list[bytes] = []
    with proxy(heads) as url, ask(None, fake.url, proxy=f"http://me:p%40ss@{url}") as client:
        assert client.classify("text").error is None
    assert heads[0].startswith(f"POST http://{fake.url}/v2/models/gpt2_classifier/infer HTTP/1.1".encode())
    assert b"Basic bWU6cEBzcw==" in heads[0]


def test_proxy_tunnel(ask: Ask, fake: FakeTriton, certificate: Path) -> None:
    """Encrypted requests go through a tunnel: the proxy sees the address but not the API key."""
    heads: list[bytes] = []
    with proxy(heads) as proxy_url, encrypted(certificate, fake.url) as url:
        tls = Tls(ca_file=str(certificate))
        with ask(None, f"https://{url}", tls=tls, proxy=f"http://{proxy_url}", api_key="s3cret") as client:
            assert client.classify("text").error is None
    assert heads[0].startswith(f"CONNECT {url} HTTP/1.".encode())
    assert b"s3cret" not in heads[0]
    assert fake.server.requests[0].headers["authorization"] == "Bearer s3cret"


def test_proxy_that_is_not_there(ask: Ask, fake: FakeTriton) -> None:
    """If the proxy is not there, the request is not sent directly."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    with ask(None, fake.url, proxy=nowhere, retry=ONCE) as client, pytest.raises(ServerUnreachableError):
        client.classify("text")
    assert fake.requests == []


def test_one_replica_lives(ask: Ask, fake: FakeTriton) -> None:
    """If one of two replicas is down, every text is answered."""
    with ask(None, [f"127.0.0.1:{free_port()}", fake.url]) as client:
        for _ in range(20):
            assert client.classify("text").error is None
