"""The server's ports among other users' programs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyhead_serving import ports
from polyhead_serving.ports import AddressError, check_listener, listeners, reserved_ports
from tests.other_user import NOBODY, run_as_nobody, started_as_nobody

BINDS = """
import socket, sys
for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
            try:
                taker.bind((address, int(sys.argv[1])))
                print("taken")
            except OSError:
                print("refused")
"""
LISTENS = """
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=getattr(socket, sys.argv[3])) as server:
    print("listening", flush=True)
    time.sleep(60)
"""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def nobody_listens(port: int, address: str = "127.0.0.1", family: str = "AF_INET") -> Iterator[None]:
    """Another user's server."""
    with started_as_nobody(LISTENS, address, str(port), family):
        yield


def test_another_user_cannot_take_a_reserved_port() -> None:
    """Neither at this address nor at all addresses; without a server behind it, connections are refused."""
    port = free_port()
    with reserved_ports("127.0.0.1", {"http": port}):
        assert run_as_nobody(BINDS, str(port)).split() == ["refused"] * 4
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    assert "taken" in run_as_nobody(BINDS, str(port))


def test_the_server_shares_a_reserved_port() -> None:
    """A process of the same user that asks for it listens, and gets all connections; so may the next one."""
    port = free_port()
    with reserved_ports("127.0.0.1", {"grpc": port}):
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port), reuse_port=True) as server:
                server.settimeout(5)
                for _ in range(20):
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                        connection, address = server.accept()
                        assert address == client.getsockname()
                        connection.close()


def test_a_port_on_which_connections_still_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stops no start: the log says that the port is not reserved yet, and it is reserved when they are gone."""
    monkeypatch.setattr(ports, "RETRY_S", 0.05)
    port = free_port()
    with socket.socket() as ending:
        ending.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ending.bind(("127.0.0.1", port))  # keeps the port as an ended connection does
        with reserved_ports("127.0.0.1", {"http": port}):
            assert f"ports [{port}] cannot be reserved yet" in caplog.text
            with socket.create_server(("127.0.0.1", port), reuse_port=True):
                ending.close()
            deadline = time.monotonic() + 30
            while run_as_nobody(BINDS, str(port)).split() != ["refused"] * 4:
                assert time.monotonic() < deadline
    assert "taken" in run_as_nobody(BINDS, str(port))


def test_a_second_supervisor_is_refused() -> None:
    """Although processes of one user could share a port."""
    port = free_port()
    with (
        reserved_ports("127.0.0.1", {"http": port}),
        pytest.raises(AddressError, match=f"--http-port {port}: cannot listen"),
        reserved_ports("127.0.0.1", {"http": port}),
    ):
        pass


def test_whoever_has_the_port_is_named() -> None:
    """The error says whose process listens there."""
    port = free_port()
    with (
        nobody_listens(port),
        pytest.raises(AddressError, match=r"Address already in use by nobody\)"),
        reserved_ports("127.0.0.1", {"metrics": port}),
    ):
        pass


def test_a_strangers_server_gets_no_key(tmp_path: Path) -> None:
    """An address at which another user listens is refused; one's own and the repository owner's are not."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert listeners(port) == {os.geteuid()}
        check_listener(f"127.0.0.1:{port}", tmp_path)
    check_listener(f"127.0.0.1:{port}", tmp_path)  # nobody listens
    with nobody_listens(port):
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(AddressError, match="listens a process of nobody, who is neither you nor the owner"):
                check_listener(f"{host}:{port}", tmp_path)
        os.chown(tmp_path, NOBODY, NOBODY)
        check_listener(f"127.0.0.1:{port}", tmp_path)


def test_a_stranger_beside_the_server() -> None:
    """A stranger at another loopback address matters only if that address would be asked."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), nobody_listens(port, "127.0.0.2"):
        check_listener(f"127.0.0.1:{port}", Path("/"))
        with pytest.raises(AddressError, match=r"at 127\.0\.0\.2 listens"):
            check_listener(f"127.0.0.2:{port}", Path("/"))


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
def test_a_stranger_at_the_other_localhost() -> None:
    """localhost may be ::1 first, where another user may listen beside the server at 127.0.0.1."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), nobody_listens(port, "::1", "AF_INET6"):
        check_listener(f"127.0.0.1:{port}", Path("/"))
        with pytest.raises(AddressError, match="at ::1 listens a process of nobody"):
            check_listener(f"[::1]:{port}", Path("/"))


@pytest.mark.parametrize(
    "server",
    ["localhost", "localhost:x", ":8001", "ipv4:127.0.0.1:8001", "dns:///127.0.0.1:8001", "unix:/tmp/server",
     "unix-abstract:x", "127.0.0.1:8001/x", "http://127.0.0.1:8001", "127.0.0.1:8001,127.0.0.2:8001", ""],
)  # fmt: skip
def test_what_grpc_reads_otherwise_gets_no_key(server: str) -> None:
    """Addresses of a form whose listener is not looked up are refused: gRPC would connect to them."""
    with pytest.raises(AddressError, match="must be HOST:PORT"):
        check_listener(server, Path("/"))


@pytest.mark.parametrize(
    "server", ["no.such.host.invalid:8001", "localhost:99999", "192.0.2.1:8001", "[2001:db8::1]:8001"]
)
def test_what_is_elsewhere_is_left_to_grpc(server: str) -> None:
    """An unknown host, a port that does not exist, and another machine raise no error of their own."""
    check_listener(server, Path("/"))


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no other address")
        return str(one.getsockname()[0])


def test_a_stranger_at_another_address_of_this_machine() -> None:
    """A stranger gets no key either where a server listens for other machines."""
    address, port = own_address(), free_port()
    with nobody_listens(port, address), pytest.raises(AddressError, match="listens a process of nobody"):
        check_listener(f"{address}:{port}", Path("/"))
